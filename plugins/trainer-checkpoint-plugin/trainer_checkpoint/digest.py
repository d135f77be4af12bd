"""A digest of arrays that does not depend on how they are sharded, computed where they lie.

For an array of words `w[i]`, `i` its position in row-major order, all in uint32 arithmetic:

    digest = sum over i of  f(w[i] ^ f(i * 0x9E3779B9 + 1))      (modulo 2**32)

where `f` is the finalizer of MurmurHash3, a bijection. The sum does not depend on the order of
summation, and therefore not on the mesh, the number of devices or the compiler. One changed
word always changes it; any other damage goes unnoticed with a probability of 2**-32. A plain
weighted sum `Σ c[i]·w[i]` was rejected: floats have many trailing zeros, and swapping 1.0 and
2.0 at a distance of 256 leaves it unchanged.

Words: a value of up to 32 bits is one word, its bits extended with zeros; one of 64 bits is two
words, the low one first; a complex number is its real part, then its imaginary part. The words
of one value count as a last array axis.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import attrs
import jax
import jax.numpy as jnp

Path: TypeAlias = tuple[str, ...]

_GOLDEN = 0x9E3779B9


@attrs.frozen
class Check:
    """What is known of one array.

    Attributes:
        digest: as above, in hexadecimal.
        is_finite: that it holds neither a NaN nor an infinity.
    """

    digest: str
    is_finite: bool


def begin_checks(arrays: Mapping[Path, jax.Array]) -> dict[Path, jax.Array]:
    """Begin to compute the digest of each array; returns at once, for `finish_checks`.

    Args:
        arrays: of any shape, numeric dtype and sharding; no typed keys. They may be donated
            afterwards.
    """
    return {path: _check(array) for path, array in arrays.items()}


def finish_checks(running: Mapping[Path, jax.Array]) -> dict[Path, Check]:
    """Wait for what `begin_checks` began."""
    return {
        path: Check(f"{values[0]:08x}", bool(values[1]))
        for path, values in jax.device_get(dict(running)).items()
    }


def checks(arrays: Mapping[Path, jax.Array]) -> dict[Path, Check]:
    """Return the digest of each array."""
    return finish_checks(begin_checks(arrays))


@jax.jit
def _check(array: jax.Array) -> jax.Array:
    words = _words(array)
    digest = jnp.sum(_mix(words ^ _mix(_positions(words.shape))), dtype=jnp.uint32)
    is_finite = jnp.all(jnp.isfinite(array)) if jnp.issubdtype(array.dtype, jnp.inexact) else True
    return jnp.stack([digest, jnp.asarray(is_finite, jnp.uint32)])


def _words(array: jax.Array) -> jax.Array:
    dtype = array.dtype
    if jnp.issubdtype(dtype, jnp.complexfloating):
        array = jnp.stack([array.real, array.imag], axis=-1)
    if dtype == jnp.bool_:
        return array.astype(jnp.uint32)
    info = jnp.finfo if jnp.issubdtype(array.dtype, jnp.inexact) else jnp.iinfo
    bits = info(array.dtype).bits
    if bits >= 32:
        return jax.lax.bitcast_convert_type(array, jnp.uint32)  # 64 bits: one more axis, of 2
    unsigned = jax.lax.bitcast_convert_type(array, jnp.dtype(f"uint{bits}"))
    return unsigned.astype(jnp.uint32)


def _positions(shape: tuple[int, ...]) -> jax.Array:
    # By axis, not by reshaping an arange: the partitioner splits an iota for free, and a
    # reshape would gather the array.
    position = jnp.full(shape, 1, jnp.uint32)
    stride = 1
    for axis in reversed(range(len(shape))):
        index = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
        position += index * jnp.uint32(stride * _GOLDEN % 2**32)
        stride *= shape[axis]
    return position


def _mix(word: jax.Array) -> jax.Array:
    word = (word ^ (word >> 16)) * jnp.uint32(0x85EBCA6B)
    word = (word ^ (word >> 13)) * jnp.uint32(0xC2B2AE35)
    return word ^ (word >> 16)
