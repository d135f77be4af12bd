"""The parts of a run without its loop: to call the step by hand, and look at what it gives."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import attrs
import jax
import jax.numpy as jnp
import numpy as np

from trainer_core.assemble import open_run
from trainer_core.config import Config, load_config
from trainer_core.hooks import Hooks
from trainer_core.loss import build_loss
from trainer_core.program import Program, build_program
from trainer_core.run import Run
from trainer_core.types import Batch, Gradient, TrainState


@attrs.frozen(eq=False, slots=False)
class Parts:
    """A built run. `state` and `step` compile at their first use."""

    config: Config
    run: Run
    hooks: Hooks
    program: Program

    def state(self) -> TrainState:
        return self.program.initial_state()

    @functools.cached_property
    def step(self) -> Any:
        return self.program.compile_step()

    def batch(self, step: int) -> Batch:
        return self.program.place(self.program.data.batch(step))

    def gradient(self, params: Any, buffers: Any, batch: Batch, key: Any = None) -> Gradient:
        """Return what the chosen `accumulate` gives for a batch."""
        key = jax.random.key(0) if key is None else key
        found: Gradient = jax.jit(self.grad_fn)(params, buffers, batch, key)
        return found

    @functools.cached_property
    def grad_fn(self) -> Any:
        model = self.program.model
        return self.hooks.accumulate(run=self.run, model=model, loss=build_loss(model))


def recipe(**tables: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config for the perceptron; `tables` add to these keys."""
    made: dict[str, Any] = {
        "run": {"steps": 4, "eval_every": 0},
        "model": {"use": "models:Perceptron"},
        "data": {"use": "models:Examples"},
        "schedule": {"use": "constant", "learning_rate": 0.1, "warmup": 0},
        "checkpoint": {"use": "none"},
        "plugins": {"progress": False},
    }
    for name, table in tables.items():
        made[name] = {**made.get(name, {}), **table}
    return made


def build(config: Mapping[str, Any], devices: Any = None) -> Parts:
    checked = load_config(config)
    run, hooks = open_run(checked, devices=devices)
    return Parts(checked, run, hooks, build_program(run, hooks))


def host(tree: Any) -> Any:
    """Return a copy of a tree on the host, typed keys as their words."""

    def read(leaf: Any) -> np.ndarray:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        return np.array(leaf)

    return jax.tree.map(read, tree)


def assert_bitwise_equal(found: Any, expected: Any) -> None:
    """Assert that two trees have the same structure, dtypes, shapes and bits."""
    found, expected = host(found), host(expected)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    different = [
        jax.tree_util.keystr(path)
        for (path, a), b in zip(
            jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True
        )
        if (a.dtype, a.shape, a.tobytes()) != (b.dtype, b.shape, b.tobytes())
    ]
    assert not different, different
