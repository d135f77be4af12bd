"""Random keys as a pure function of where they are used: a run's key, folded with names."""

from __future__ import annotations

import zlib

import jax


def fold(key: jax.Array, *parts: str | int | jax.Array) -> jax.Array:
    """Return the key of a place: `fold(key, "layers", 3, "attention")`.

    Equal parts give equal keys in every framework, on every device and in every process.

    Args:
        key: a typed PRNG key.
        parts: names, folded in by their CRC-32, and numbers (an int32 scalar may be traced).
    """
    for part in parts:
        number = zlib.crc32(part.encode()) if isinstance(part, str) else part
        key = jax.random.fold_in(key, number)
    return key
