"""A digest of arrays that does not depend on how they are sharded, computed where they lie.

For an array of words `w[i]`, `i` its position in row-major order, all in uint32 arithmetic:

    digest = sum over i of  f(w[i] ^ f(i * 0x9E3779B9 + 1))      (modulo 2**32)

where `f` is the finalizer of MurmurHash3, a bijection. The sum does not depend on the order of
summation, and therefore not on the mesh, the number of devices or the compiler. One changed
word always changes it; any other damage goes unnoticed with a probability of 2**-32. A plain
weighted sum `Σ c[i]·w[i]` was rejected: floats end in many zero bits, and it may not notice
that 1.0 and 2.0 were swapped. It would be no faster either.

Words: a value of up to 32 bits is one word, its bits extended by zeros; one of 64 bits is two
words, the low one first; a complex number is its real part, then its imaginary part. The words
of one value count as a last array axis.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeAlias

import attrs
import jax
import jax.numpy as jnp
import numpy as np

from trainer_core.mesh import must_run_in_turn

Path: TypeAlias = tuple[str, ...]

_GOLDEN = 0x9E3779B9
_compiled: set[Any] = set()  # saves time only: jax keeps the programs


@attrs.frozen
class Check:
    """What is known of one array.

    Attributes:
        digest: as above, in hexadecimal.
        is_finite: that it holds no NaN, and no infinity where it may hold none.
    """

    digest: str
    is_finite: bool


def begin_checks(
    arrays: Mapping[Path, jax.Array], may_be_infinite: Collection[Path] = ()
) -> Callable[[], dict[Path, Check]]:
    """Begin to compute the digest of each array, and return what waits for them all.

    Returns at once, except where programs must run in turn: there each is waited for, also for
    those of Orbax, which follow. On a single CPU it is the function returned that computes them, in
    the thread that calls it: a queue there is so short that it would be waited for here.

    Args:
        arrays: of any shape, numeric dtype and sharding; no typed keys. They may be donated
            afterwards.
        may_be_infinite: those in which an infinity is finite enough, and a NaN is not.
    """
    devices: set[jax.Device] = {
        device for array in arrays.values() for device in array.sharding.device_set
    }
    if len(devices) > 1 or next(iter(devices)).platform != "cpu":
        return partial(_finished, _begun(arrays, may_be_infinite))
    # Views of the same memory. While there is one, JAX writes nothing to it: a step that is given
    # the array as donated makes a new one. What Orbax writes are such views, too.
    views = {path: (np.asarray(array), array.sharding) for path, array in arrays.items()}
    is_wide = getattr(jax.config, "jax_enable_x64", False)
    return partial(_checks_of_views, views, may_be_infinite, is_wide)


def checks(arrays: Mapping[Path, jax.Array]) -> dict[Path, Check]:
    """Return the digest of each array."""
    return _finished(_begun(arrays, ()))


def _checks_of_views(
    views: Mapping[Path, Any], may_be_infinite: Collection[Path], is_wide: bool
) -> dict[Path, Check]:
    # One at a time: a step that the loop calls meanwhile waits behind all that are in the queue.
    with jax.enable_x64(is_wide):  # a setting of the thread that took them
        found: dict[Path, Check] = {}
        for path, view in views.items():
            found |= _finished(_begun({path: jax.device_put(*view)}, may_be_infinite))
        return found


def _begun(arrays: Mapping[Path, jax.Array], may_be_infinite: Collection[Path]) -> dict[Path, Any]:
    kinds = {
        (array.shape, array.dtype, array.sharding, path in may_be_infinite): array
        for path, array in arrays.items()
    }
    _compile(kinds)
    running = {}
    for path, array in arrays.items():
        running[path] = _check(array, may_be_infinite=path in may_be_infinite)
        if must_run_in_turn(array.sharding.device_set):
            jax.block_until_ready(running[path])
    return running


def _finished(running: Mapping[Path, Any]) -> dict[Path, Check]:
    return {
        path: Check(f"{digest:08x}", bool(is_finite))
        for path, (digest, is_finite) in jax.device_get(dict(running)).items()
    }


def _compile(kinds: Mapping[Any, jax.Array]) -> None:
    # One small program for each kind of array: one for all of the state would take as long to
    # compile as the arrays are many. They are compiled side by side, before the first is called;
    # traced here, because jax's settings (a mesh, x64) are those of a thread.
    new = kinds.keys() - _compiled
    traced = [_check.lower(kinds[kind], may_be_infinite=kind[-1]) for kind in new]
    if traced:
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda program: program.compile(), traced))
    _compiled.update(new)


@partial(jax.jit, static_argnames="may_be_infinite")
def _check(array: jax.Array, *, may_be_infinite: bool) -> tuple[jax.Array, jax.Array]:
    parts = _parts(array)
    words = _words(parts)
    mixed = _mix(words ^ _mix(_positions(words.shape)))
    fine = jnp.broadcast_to(_fine(parts, may_be_infinite, words.ndim), words.shape)
    # One reduction to both: XLA for CPUs reads the array once, in one loop on all cores, which
    # takes a quarter to a twentieth of the time of two.
    digest, is_finite = jax.lax.reduce(
        (mixed, fine),
        (jnp.uint32(0), jnp.array(True)),
        lambda one, other: (one[0] + other[0], one[1] & other[1]),
        tuple(range(words.ndim)),
    )
    return digest, is_finite


def _parts(array: jax.Array) -> jax.Array:
    """The two parts of complex numbers on a last axis."""
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        return jnp.stack([array.real, array.imag], axis=-1)
    return array


def _words(array: jax.Array) -> jax.Array:
    if array.dtype == jnp.bool_:
        return array.astype(jnp.uint32)
    bits = _bits(array.dtype)
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


def _fine(array: jax.Array, may_be_infinite: bool, axes: int) -> jax.Array:
    """Whether each value is, with as many axes as the words have."""
    if not jnp.issubdtype(array.dtype, jnp.inexact):
        return jnp.full((1,) * axes, True)
    values = array.astype(jnp.float32) if _bits(array.dtype) < 32 else array
    fine = ~jnp.isnan(values) if may_be_infinite else jnp.isfinite(values)
    return fine.reshape(fine.shape + (1,) * (axes - fine.ndim))


def _bits(dtype: Any) -> int:
    info: Any = jnp.finfo if jnp.issubdtype(dtype, jnp.inexact) else jnp.iinfo
    return int(info(dtype).bits)
