"""What was saved is what is restored, to the last bit."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import attrs
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from checkpointed import (
    CONFIG,
    bits,
    files,
    folder,
    like,
    restore,
    run_in,
    save,
    saving,
    state_at,
)

from trainer_core.errors import UserError
from trainer_core.run import Run
from trainer_core.types import Data, TrainState

LEAVES = {
    "float32": jnp.array([1.0, -0.0, jnp.pi, 1e-42]),
    "bfloat16": jnp.array([[1.5, -2.25]], jnp.bfloat16),
    "float16": jnp.array([6e-8], jnp.float16),
    "float8": jnp.array([0.5, 448.0], jnp.float8_e4m3fn),
    "int8": jnp.array([-128, 127], jnp.int8),
    "int4": jnp.array([-8, 7, 3], jnp.int4),
    "uint32": jnp.array([2**32 - 1], jnp.uint32),
    "bool": jnp.array([[True, False], [False, True]]),
    "complex64": jnp.array([1 + 2j, -3.5j], jnp.complex64),
    "scalar": jnp.float32(3.0),
    "empty": jnp.zeros((0, 3), jnp.bfloat16),
    "key": jax.random.key(5),
    "keys": jax.random.split(jax.random.key(6, impl="rbg"), 3),
    "nothing": None,
    "no_leaves": {},
    "a/b": jnp.ones(2),
    "a": {"b.c": jnp.ones(3), "": jnp.ones(1)},
}

OPTIMIZERS = {
    "sgd": optax.sgd(0.1),
    "momentum": optax.sgd(0.1, momentum=0.9),
    "adamw": optax.adamw(optax.cosine_decay_schedule(0.1, 10)),
    "adafactor": optax.adafactor(0.1),
    "hyperparams": optax.inject_hyperparams(optax.adam)(0.1),
    "multi_steps": optax.MultiSteps(optax.adam(0.1), 2),
    "masked": optax.masked(
        optax.adam(0.1), lambda params: jax.tree.map(lambda x: x.ndim > 1, params)
    ),
    "partition": optax.partition(
        {1: optax.sgd(0.1, momentum=0.9), 2: optax.adam(0.1)},
        lambda params: jax.tree.map(lambda x: x.ndim, params),
    ),
    "apply_if_finite": optax.apply_if_finite(optax.lion(0.1), 3),
}


class Stream(Data):
    """A source that can only stream, and knows where it is."""

    position = 0

    def state(self) -> dict[str, Any]:
        return {"position": self.position, "files": ["a", "b"], "part": 0.1}

    def load(self, state: dict[str, Any]) -> None:
        self.position = state["position"]
        assert state["files"] == ["a", "b"]
        assert state["part"] == 0.1


def test_leaves_of_every_kind_are_restored_bitwise(run: Run) -> None:
    state = attrs.evolve(state_at(1, run.mesh), params=LEAVES)
    save(run, state)
    restored = restore(run, like(state, run.mesh))
    assert restored is not None
    assert bits(restored) == bits(state)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_state_of_any_optax_optimizer_is_restored_bitwise(run: Run, name: str) -> None:
    state = state_at(1, run.mesh, OPTIMIZERS[name])
    save(run, state)
    restored = restore(run, like(state, run.mesh))
    assert restored is not None
    assert bits(restored) == bits(state)


def test_restored_leaves_lie_where_like_wants_them(run: Run) -> None:
    state = state_at(1, run.mesh)
    save(run, state)
    wanted = like(state, run.mesh)
    restored = restore(run, wanted)
    for leaf, target in zip(jax.tree.leaves(restored), jax.tree.leaves(wanted), strict=True):
        assert leaf.sharding == target.sharding


def test_the_newest_of_several_is_restored(run: Run) -> None:
    states = [state_at(step, run.mesh) for step in (9, 10, 100)]
    save(run, *states, keep=3)
    restored = restore(run, like(states[0], run.mesh))
    assert restored is not None
    assert bits(restored) == bits(states[2])


def test_nothing_saved_restores_none(run: Run) -> None:
    wanted = like(state_at(1, run.mesh), run.mesh)
    assert restore(run, wanted) is None
    (run.directory / "checkpoints").mkdir(parents=True)
    assert restore(run, wanted) is None


def test_a_position_that_is_no_dict_is_refused_before_it_is_saved(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Stream, "state", lambda stream: [41])
    with pytest.raises(UserError, match=r"\[data\]: state\(\) gives a list; expected a dict"):
        save(run, state_at(1, run.mesh), data=Stream())


def test_a_streams_position_goes_into_the_checkpoint_and_back(run: Run) -> None:
    state, stream = state_at(1, run.mesh), Stream()
    stream.position = 41
    save(run, state, data=stream)
    again = Stream()
    restore(run, like(state, run.mesh), again)
    assert again.position == 41


def test_restore_writes_nothing(run: Run) -> None:
    state = state_at(1, run.mesh)
    save(run, state)
    (run.directory / "checkpoints" / "2.orbax-checkpoint-tmp").mkdir()  # of a killed process
    (run.directory / "checkpoints" / "3").mkdir()  # half-copied
    before = _tree(run.directory)
    restore(run, like(state, run.mesh))
    assert _tree(run.directory) == before
    nowhere = run_in(run.directory / "nowhere")
    restore(nowhere, like(state, run.mesh))
    assert not nowhere.directory.exists()


def test_a_run_directory_that_was_moved_is_restored(run: Run, tmp_path: Path) -> None:
    state = state_at(1, run.mesh)
    save(run, state)
    shutil.copytree(run.directory, tmp_path / "elsewhere" / "copy")
    shutil.rmtree(run.directory)
    restored = restore(run_in(tmp_path / "elsewhere" / "copy"), like(state, run.mesh))
    assert restored is not None
    assert bits(restored) == bits(state)


def test_a_relative_run_directory_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = run_in(Path("runs/relative"))
    state = state_at(1, run.mesh)
    save(run, state)
    assert restore(run, like(state, run.mesh)) is not None
    assert (tmp_path / "runs/relative/checkpoints/1").is_dir()


def test_a_saved_state_may_be_donated_at_once(run: Run) -> None:
    size = (1024, 2048)  # 8 MB, so that writing takes longer than the updates below

    @jax.jit
    def start() -> TrainState:
        params = {str(n): jnp.full(size, float(n)) for n in range(4)}
        return TrainState(jnp.int32(0), params, {}, (), jax.random.key(0))

    def update(state: TrainState) -> TrainState:
        params = jax.tree.map(lambda leaf: leaf + 1.0, state.params)
        return attrs.evolve(state, step=state.step + 1, params=params)

    step = jax.jit(update, donate_argnums=0)
    state = start()
    with saving(run, keep=9) as plugin:
        for number in range(1, 61):
            state = step(state)
            if number % 20 == 0:
                plugin.save(run, number, state, Data())
    for number in (60, 40, 20):
        restored = restore(run, like(state, run.mesh))
        assert restored is not None
        assert int(restored.step) == number
        for name, leaf in restored.params.items():
            assert np.unique(leaf) == [float(name) + number]
        shutil.rmtree(folder(run, number))


def test_a_checkpoint_says_what_it_is(run: Run) -> None:
    save(run, state_at(1, run.mesh))
    meta = json.loads((folder(run, 1) / "meta" / "metadata").read_text())
    assert meta["format"] == 1
    assert meta["step"] == 1
    assert meta["config"] == CONFIG
    assert meta["finite"] is True
    assert {"python", "jax", "orbax-checkpoint", "trainer-core"} <= meta["versions"].keys()
    assert meta["parts"].keys() == {"step", "params", "buffers", "opt_state", "key", "extra"}
    kernel = meta["leaves"]["params/layers/kernel"]
    assert (kernel["shape"], kernel["dtype"]) == ([128, 8], "float32")


def test_equal_states_have_equal_digests_and_others_have_not(run: Run, tmp_path: Path) -> None:
    def digest(name: str, step: int) -> str:
        other = run_in(tmp_path / name)
        save(other, state_at(step, run.mesh))
        return json.loads((folder(other, step) / "meta" / "metadata").read_text())["digest"]

    assert digest("a", 1) == digest("b", 1)
    assert digest("c", 1) != digest("d", 2)


def test_orbax_alone_can_read_a_checkpoint(run: Run) -> None:
    state = state_at(1, run.mesh)
    save(run, state)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it takes the shardings from a file
        tree = ocp.PyTreeCheckpointer().restore(folder(run, 1).absolute() / "state")
    np.testing.assert_array_equal(
        tree["params"]["layers"]["kernel"], state.params["layers"]["kernel"]
    )
    assert tree["opt_state"]["1"]["0"]["mu"].keys() == state.params.keys()


def _tree(directory: Path) -> tuple[list[str], dict[str, bytes]]:
    return sorted(map(str, directory.rglob("*"))), files(directory)
