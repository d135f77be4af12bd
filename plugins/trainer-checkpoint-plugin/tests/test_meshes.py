"""Saved on one mesh, restored on another."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from checkpointed import bits, folder, like, python, restore, run_in, save, state_at

ON_EIGHT_DEVICES = """
import json, sys
from pathlib import Path
import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from checkpointed import bits, folder, like, restore, run_in, save, state_at

assert jax.device_count() == 8
one, eight = (run_in(Path(sys.argv[1]) / name, devices=8) for name in ("one", "eight"))
state = state_at(5, eight.mesh)
assert len(state.params["layers"]["kernel"].addressable_shards) == 8
save(eight, state)

for written in (one, eight):
    for devices in (8, 4, 2, 1):
        mesh = run_in(Path("unused"), devices).mesh
        wanted = like(state, mesh)
        found = restore(written, wanted)
        assert bits(found) == bits(state)
        for leaf, target in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            assert leaf.sharding == target.sharding

# By other axes than those that it was spread over.
mesh = jax.make_mesh((4, 2), ("tensor", "fsdp"), axis_types=(AxisType.Auto,) * 2)
def turned(leaf):
    spec = PartitionSpec("fsdp", "tensor") if leaf.ndim == 2 else PartitionSpec()
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

wide = jax.tree.map(turned, state)
assert bits(restore(eight, wide)) == bits(state)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Step 5 saved on one device in `one`, read by a process with eight that wrote `eight`."""
    place = tmp_path_factory.mktemp("meshes")
    run = run_in(place / "one")
    save(run, state_at(5, run.mesh))
    child = python(ON_EIGHT_DEVICES, place, devices=8)
    output = child.communicate()
    assert output == ("", "")
    assert child.returncode == 0
    return place


def test_from_one_or_eight_devices_to_any_number_it_is_bitwise_equal_and_sharded(
    place: Path,
) -> None:
    assert (place / "eight").is_dir()  # what is asserted in the other process held


def test_from_eight_devices_to_one_it_is_bitwise_equal(place: Path) -> None:
    run = run_in(place / "eight")
    state = state_at(5, run.mesh)
    restored = restore(run, like(state, run.mesh))
    assert restored is not None
    assert bits(restored) == bits(state)


def test_the_digest_does_not_depend_on_the_mesh(place: Path) -> None:
    def meta(name: str) -> dict[str, object]:
        path = folder(run_in(place / name), 5) / "meta" / "metadata"
        meta: dict[str, object] = json.loads(path.read_text())
        return meta

    assert meta("one")["leaves"] == meta("eight")["leaves"]
    assert meta("one")["digest"] == meta("eight")["digest"]
