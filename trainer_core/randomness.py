"""Random keys as a pure function of where they are used: a run's key, folded with names."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def fold(key: jax.Array, *parts: str | int | jax.Array) -> jax.Array:
    """Return the key of a place: `fold(key, "layers", 3, "attention")`.

    Equal parts give equal keys in every framework, on every device and in every process.

    Args:
        key: a typed PRNG key.
        parts: names, folded in by their CRC-32, and numbers (an int32 scalar may be traced).
    """
    for part in parts:
        key = jax.random.fold_in(key, _number(part) if isinstance(part, str) else part)
    return key


def fold_each(key: jax.Array, names: Sequence[str]) -> list[jax.Array]:
    """Return `fold(key, name)` for each name, as one hash: it compiles in the time of one."""
    numbers = np.array([_number(name) for name in names], np.uint32)
    return list(jax.vmap(lambda number: jax.random.fold_in(key, number))(numbers))


def key_after(key: jax.Array, values: jax.Array) -> jax.Array:
    """Return the same key, known only when some values are: what it draws is drawn after them.

    XLA drops `lax.optimization_barrier` on CPUs, and would make everything at once. That no value
    is a NaN it cannot know.

    Args:
        key: a typed PRNG key.
        values: floats, none of them NaN.
    """
    data = jax.random.key_data(key)
    none = jnp.isnan(values).any().astype(data.dtype)  # 0
    same: jax.Array = jax.random.wrap_key_data(data ^ none, impl=jax.random.key_impl(key))
    return same


def _number(name: str) -> int:
    return zlib.crc32(name.encode())
