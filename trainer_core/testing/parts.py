"""The parts of a run without its loop: to call the step by hand, and look at what it gives."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
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
    def first_state(self) -> TrainState:
        """The state before the first step, for those that only look: a step would donate it."""
        return self.state()

    @functools.cached_property
    def step(self) -> Any:
        return self.program.compile_step()

    def batch(self, step: int) -> Batch:
        return self.program.place(self.program.data.batch(step))

    def terms(self, train: bool) -> Any:
        """Return the model's compiled `terms(params, buffers, batch, key)`."""
        return self._terms[train]

    @functools.cached_property
    def _terms(self) -> dict[bool, Any]:
        terms = self.program.model.terms
        return {train: jax.jit(functools.partial(_called, terms, train)) for train in (True, False)}

    def gradient(self, params: Any, buffers: Any, batch: Batch, key: Any = None) -> Gradient:
        """Return what the chosen `accumulate` gives for a batch."""
        key = jax.random.key(0) if key is None else key
        found: Gradient = jax.jit(self.grad_fn)(params, buffers, batch, key)
        return found

    @functools.cached_property
    def grad_fn(self) -> Any:
        model = self.program.model
        return self.hooks.accumulate(run=self.run, model=model, loss=build_loss(model))


def _called(terms: Any, train: bool, params: Any, buffers: Any, batch: Any, key: Any) -> Any:
    return terms(params, buffers, batch, key, train)


def build(config: Mapping[str, Any], devices: Any = None) -> Parts:
    checked = load_config(config)
    run, hooks = open_run(checked, devices=devices)
    return Parts(checked, run, hooks, build_program(run, hooks))


@functools.lru_cache(maxsize=16)
def _built(recipe: str) -> Parts:
    return build(json.loads(recipe))


def built(recipe: Mapping[str, Any]) -> Parts:
    """Return the parts of a recipe, built and compiled once a process."""
    return _built(json.dumps(recipe, sort_keys=True))


def write_leaves(file: Path, tree: Any) -> None:
    """Write every leaf of a tree to a NumPy archive."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(host(tree))]
    np.savez(file, *[np.frombuffer(leaf.tobytes(), np.uint8) for leaf in leaves])


def read_leaves(file: Path, like: Any) -> Any:
    """Return the tree of such an archive, each leaf where that of `like` lies."""
    with np.load(file) as archive:
        stored = [archive[name].tobytes() for name in archive.files]
    wanted, structure = jax.tree.flatten(like)
    leaves = [_placed(*pair) for pair in zip(stored, wanted, strict=True)]
    return jax.tree.unflatten(structure, leaves)


def _placed(stored: bytes, like: Any) -> Any:
    if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
        words = jax.eval_shape(jax.random.key_data, like)
        data = jnp.asarray(np.frombuffer(stored, words.dtype).reshape(words.shape))
        return jax.device_put(jax.random.wrap_key_data(data), like.sharding)
    return jax.device_put(np.frombuffer(stored, like.dtype).reshape(like.shape), like.sharding)


def host(tree: Any) -> Any:
    """Return a copy of a tree on the host, typed keys as their words."""

    def read(leaf: Any) -> np.ndarray:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        return np.array(leaf)

    return jax.tree.map(read, tree)


def assert_bitwise_equal(found: Any, expected: Any) -> None:
    """Assert that two trees have the same structure, dtypes, shapes and bits."""
    different = different_leaves(found, expected)
    assert not different, different


def different_leaves(found: Any, expected: Any) -> list[str]:
    """Return the paths of the leaves of two trees that differ in dtype, shape or bits."""
    found, expected = host(found), host(expected)
    structures: list[Any] = [jax.tree.structure(found), jax.tree.structure(expected)]
    if structures[0] != structures[1]:
        return [f"the structure: {structures[0]} against {structures[1]}"]
    return [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for (path, a), b in zip(
            jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True
        )
        if (a.dtype, a.shape, a.tobytes()) != (b.dtype, b.shape, b.tobytes())
    ]


def kinds(tree: Any) -> dict[str, str]:
    """Return the dtype and shape of each leaf, by its path."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def first_difference(found: Mapping[str, str], wanted: Mapping[str, str]) -> str:
    """Return what is the first to differ of two that `kinds` returned, which are not equal."""
    path = next(each for each in {**wanted, **found} if found.get(each) != wanted.get(each))
    return f"{path}: {found.get(path, 'nothing')} instead of {wanted.get(path, 'nothing')}"
