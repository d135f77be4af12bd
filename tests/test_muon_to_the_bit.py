"""Sharded, Muon's update is to the bit that of one device, as XLA compiles it for a run.

A test of its own: the others do without most of XLA's optimizations, and it is these that choose
where a multiplication and an addition become one operation with one rounding.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import jax
import pytest
from muon_on_mesh import MESHES, SIZES, Sharded
from programs import assert_bitwise_equal

from trainer_core.decoder import DecoderConfig

pytest.importorskip("trainer_muon")
pytestmark = pytest.mark.eight_devices

SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "per head, NorMuon": {"per_head": ["heads", "kv_heads"], "normuon": True},
}
# Of 2 layers there are fewer matrices of each shape than devices, of 4 as many (query and out),
# of 3 six and nine.
DEPTHS = [(2, True), (3, False), (4, True)]
SHORT = ("all three", (3, False))


@functools.cache
def on(mesh: str, layers: int, scan: bool, settings: str) -> Sharded:
    sizes = {} if mesh == "one device" else MESHES[mesh]
    config = DecoderConfig(**SIZES, layers=layers, scan=scan, qk_norm=False)
    return Sharded(sizes, config, **SETTINGS[settings])


@functools.cache
def on_one_device(layers: int, scan: bool, settings: str) -> Any:
    return jax.device_get(on("one device", layers, scan, settings).two_updates())


@pytest.mark.parametrize(
    ("mesh", "depth", "settings"),
    [
        pytest.param(
            mesh,
            depth,
            settings,
            marks=[] if settings == "plain" and (mesh, depth) == SHORT else pytest.mark.long,
        )
        for mesh, depth, settings in itertools.product(MESHES, DEPTHS, SETTINGS)
    ],
)
def test_sharded_it_is_what_it_is_on_one_device(
    mesh: str, depth: tuple[int, bool], settings: str
) -> None:
    optimizer = on(mesh, *depth, settings)
    found = optimizer.two_updates()
    assert_bitwise_equal(found, on_one_device(*depth, settings))
    for leaf, where in zip(jax.tree.leaves(found[0]), jax.tree.leaves(optimizer.lies), strict=True):
        assert leaf.sharding.is_equivalent_to(where, leaf.ndim)
