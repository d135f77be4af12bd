"""Between the state of a run and what is written of it: plain arrays by path.

On disk the state is nested dicts of plain arrays with string keys, whatever the optimizer's own
containers are: a named tuple gives its fields' names, a tuple or list its indices. So a
checkpoint depends on no class of any library. Typed keys are written as their words; what holds
no value (None, an empty tuple, an array of size zero) is not written: `like` gives it back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias, cast

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from trainer_core.types import TrainState

Path: TypeAlias = tuple[str, ...]


def by_path(state: TrainState) -> dict[Path, Any]:
    """Return the leaves of a state, or of its abstract twin, by their keys."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    named = {tuple(_key(entry) for entry in path): leaf for path, leaf in leaves}
    assert len(named) == len(leaves), "two leaves of the state have the same path"
    return named


def described(leaves: Mapping[Path, Any]) -> dict[str, dict[str, Any]]:
    """Return the shape and dtype of each leaf, by its keys joined by `/`; plain JSON."""
    return {
        "/".join(path): {"shape": list(leaf.shape), "dtype": str(leaf.dtype)}
        for path, leaf in leaves.items()
    }


def written(leaves: Mapping[Path, Any]) -> dict[Path, jax.Array]:
    """Return those leaves that hold values, typed keys as their words."""
    return {
        path: _key_data(leaf) if _is_key(leaf) else leaf
        for path, leaf in leaves.items()
        if leaf.size > 0
    }


def targets(like: Mapping[Path, Any]) -> dict[Path, jax.ShapeDtypeStruct]:
    """Return shape, dtype and sharding of what `written` gives for such leaves."""
    return {path: _target(leaf) for path, leaf in like.items() if leaf.size > 0}


def assembled(arrays: Mapping[Path, jax.Array], like: TrainState) -> TrainState:
    """Return the state of which `arrays` was written: the inverse of `written`."""
    structure = jax.tree_util.tree_structure(like)
    leaves = [_leaf(arrays.get(path), wanted) for path, wanted in by_path(like).items()]
    return cast(TrainState, jax.tree_util.tree_unflatten(structure, leaves))


def nested(leaves: Mapping[Path, Any]) -> dict[str, Any]:
    """Return nested dicts for leaves by path."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = leaf
    return tree


def flat(tree: Mapping[str, Any], prefix: Path = ()) -> dict[Path, Any]:
    """Return the leaves of nested dicts by path: the inverse of `nested`."""
    leaves: dict[Path, Any] = {}
    for key, value in tree.items():
        inner = flat(value, (*prefix, key)) if isinstance(value, dict) else {(*prefix, key): value}
        leaves.update(inner)
    return leaves


def _key(entry: Any) -> str:
    for attribute in ("key", "name", "idx"):  # of a dict, a named field, a sequence
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    raise AssertionError(f"unknown key of a pytree: {entry!r}")


def _is_key(leaf: Any) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key))


@jax.jit
def _key_data(key: jax.Array) -> jax.Array:
    return jax.random.key_data(key)


def _target(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = leaf.sharding or SingleDeviceSharding(jax.devices()[0])
    words = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
    return jax.ShapeDtypeStruct(words.shape, words.dtype, sharding=sharding)


def _leaf(array: jax.Array | None, like: Any) -> jax.Array:
    if array is None:
        return jnp.zeros(like.shape, like.dtype, device=like.sharding)  # of size zero
    if _is_key(like):
        return _as_key(array, like)
    return array


def _as_key(words: jax.Array, like: Any) -> jax.Array:
    names: list[Any] = []
    jax.eval_shape(lambda key: names.append(jax.random.key_impl(key)), like)
    wrap = jax.jit(
        lambda data: jax.random.wrap_key_data(data, impl=names[0]), out_shardings=like.sharding
    )
    return cast(jax.Array, wrap(words))
