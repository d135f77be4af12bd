"""The digest: its formula, what it notices, for every dtype."""

from __future__ import annotations

import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trainer_checkpoint.digest import Check, _check, begin_checks, checks

DTYPES = [
    "float32",
    "bfloat16",
    "float16",
    "float8_e4m3fn",
    "int8",
    "int32",
    "uint16",
    "bool",
    "complex64",
    "float64",
    "int64",
    "complex128",
]


def check(array: Any) -> Check:
    return checks({("x",): jnp.asarray(array)})[("x",)]


def reference(array: np.ndarray) -> str:
    """The module's docstring, in NumPy."""

    def mix(word: np.ndarray) -> np.ndarray:
        word = (word ^ (word >> 16)) * np.uint32(0x85EBCA6B)
        word = (word ^ (word >> 13)) * np.uint32(0xC2B2AE35)
        return word ^ (word >> 16)

    if array.dtype.itemsize >= 4:
        words = np.ascontiguousarray(array).reshape(-1).view(np.uint32)
    else:
        unsigned = {1: np.uint8, 2: np.uint16}[array.dtype.itemsize]
        words = np.ascontiguousarray(array).reshape(-1).view(unsigned).astype(np.uint32)
    positions = np.arange(words.size, dtype=np.uint32) * np.uint32(0x9E3779B9) + np.uint32(1)
    return f"{mix(words ^ mix(positions)).sum(dtype=np.uint32):08x}"


def values(dtype: str, shape: tuple[int, ...]) -> Any:
    random = np.random.default_rng(0).normal(size=shape) * 3
    return (random > 0) if dtype == "bool" else jnp.asarray(random).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_it_is_what_the_formula_says(dtype: str) -> None:
    with jax.enable_x64(True):
        array = values(dtype, (3, 5, 4))
        assert array.dtype == dtype
        assert check(array).digest == reference(np.asarray(array))


@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0), (7, 1, 2)])
def test_it_is_defined_for_every_shape(shape: tuple[int, ...]) -> None:
    array = values("float32", shape)
    assert check(array).digest == reference(np.asarray(array))


def test_each_single_bit_counts() -> None:
    array = np.asarray(values("float32", (4, 4)))
    flipped = np.repeat(array.view(np.uint32)[None], 512, axis=0)
    for bit in range(512):
        flipped[bit].reshape(-1)[bit // 32] ^= np.uint32(1 << bit % 32)
    rows = {("row", str(bit)): jnp.asarray(flipped[bit].view(np.float32)) for bit in range(512)}
    digests = {found.digest for found in checks(rows).values()}
    assert len(digests) == 512
    assert check(array).digest not in digests


def test_zeros_of_either_sign_and_two_nans_differ() -> None:
    nans = np.array([0x7FC00000, 0x7FC00001], np.uint32).view(np.float32)
    assert check(nans[:1]).digest != check(nans[1:]).digest
    assert check(np.float32(0.0)).digest != check(np.float32(-0.0)).digest


def test_two_values_swapped_at_any_distance_are_noticed() -> None:
    array = np.ones(2048, np.float32)
    array[0] = 2.0
    rows = {("row", str(n)): jnp.asarray(np.roll(array, n)) for n in range(0, 2048, 8)}
    assert len({found.digest for found in checks(rows).values()}) == len(rows)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "complex64"])
def test_it_says_whether_all_is_finite(dtype: str) -> None:
    largest = float(jnp.finfo(dtype).max)
    assert check(jnp.full(1000, largest, dtype)).is_finite
    assert not check(jnp.array([0.0, float("inf")], dtype)).is_finite
    assert not check(jnp.array([1.0, float("nan")], dtype)).is_finite


def test_integers_are_finite() -> None:
    assert check(jnp.arange(3)).is_finite


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32"])
def test_an_array_is_read_once_and_nothing_is_written_down_on_the_way(dtype: str) -> None:
    array = values(dtype, (512, 1024))
    program = _check.lower(array, may_be_infinite=False).compile()
    # XLA counts the bytes of what its loops read and write: here the array, and the two results.
    assert program.cost_analysis()["bytes accessed"] < 1.001 * array.nbytes
    assert program.memory_analysis().temp_size_in_bytes < 0.001 * array.nbytes


def test_it_is_of_what_the_arrays_held_before_they_were_donated() -> None:
    add = jax.jit(lambda array: array + 1.0, donate_argnums=0)
    arrays = {("x", str(n)): jnp.full((1024, 1024), float(n)) for n in range(4)}
    before = checks(arrays)
    wait = begin_checks(arrays)
    for _ in range(9):
        arrays = {path: add(array) for path, array in arrays.items()}
    jax.block_until_ready(arrays)
    assert wait() == before
    assert checks(arrays) != before


def test_it_is_waited_for_in_any_thread_at_any_width() -> None:
    found: list[dict[Any, Check]] = []
    with jax.enable_x64(True):
        arrays = {("x",): jnp.array([1e300, 1 / 3], "float64")}  # infinite in 32 bits
        before = checks(arrays)
        wait = begin_checks(arrays)
    thread = threading.Thread(target=lambda: found.append(wait()))
    thread.start()
    thread.join()
    assert found == [before]
    assert before[("x",)].is_finite
