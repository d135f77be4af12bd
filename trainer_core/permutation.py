"""A seeded shuffle of range(n) that is computed place by place, so that no list of it exists.

A shuffled list of 2**30 windows would take 8 GiB in each process and be made anew each epoch.
A block cipher over the numbers below n is a shuffle too, and tells what comes at one place
without knowing of the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

_Words: TypeAlias = NDArray[np.uint64]
_Cipher: TypeAlias = Callable[[_Words, _Words, np.uint64, np.uint64], _Words]

# With 4 rounds the orders of 3 items are visibly not equally frequent, with 8 those of 4 are.
ROUNDS = 8
# The increment and the finaliser of SplitMix64 (Steele, Lea and Flood, "Fast splittable
# pseudorandom number generators", OOPSLA 2014).
_INCREMENT = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_SHIFTS = (np.uint64(30), np.uint64(27), np.uint64(31))
_ROUND_SHIFTS = (np.uint64(32), np.uint64(24))


def permute(index: ArrayLike, size: int, seed: int, epoch: ArrayLike = 0) -> NDArray[np.int64]:
    """Return what the shuffle of range(size) has at the places `index`.

    A generalised Feistel network over Z_a x Z_b with a = ceil(sqrt(size)), b = ceil(size / a),
    and cycle walking where one of its a * b >= size values leaves range(size): Black and
    Rogaway, "Ciphers with Arbitrary Finite Domains" (CT-RSA 2002). As a * b - size < a, fewer
    than one place in sqrt(size) walks. The round function is a hash, not a cipher: the order is
    well mixed, not secret.

    Args:
        index: integers in [0, size), of any shape.
        size: how many items are shuffled, from 1 to 2**40.
        seed: any integer; two seeds give unrelated orders.
        epoch: an integer, or one for each index; two epochs give unrelated orders.

    Returns:
        Integers in [0, size), in the shape of `index`; distinct for distinct indices.
    """
    return _walk(index, size, seed, epoch, _encrypt)


def place(item: ArrayLike, size: int, seed: int, epoch: ArrayLike = 0) -> NDArray[np.int64]:
    """Return at which places the shuffle has the given items: the inverse of `permute`."""
    return _walk(item, size, seed, epoch, _decrypt)


def _walk(
    index: ArrayLike, size: int, seed: int, epoch: ArrayLike, cipher: _Cipher
) -> NDArray[np.int64]:
    shape = np.shape(index)
    value = np.array(index, np.int64).ravel().astype(np.uint64)
    keys = _round_keys(seed, np.broadcast_to(epoch, shape).ravel())  # [rounds, index]
    rows = math.isqrt(size - 1) + 1
    a, b = np.uint64(rows), np.uint64(-(-size // rows))
    value = cipher(value, keys, a, b)
    # The cycle through a place inside comes back inside, so that this ends.
    while (outside := np.flatnonzero(value >= size)).size:
        value[outside] = cipher(value[outside], keys[:, outside], a, b)
    return value.astype(np.int64).reshape(shape)


def _encrypt(value: _Words, keys: _Words, a: np.uint64, b: np.uint64) -> _Words:
    right, left = np.divmod(value, a)
    for number in range(0, ROUNDS, 2):
        left = (left + _round(keys[number], right)) % a
        right = (right + _round(keys[number + 1], left)) % b
    return left + a * right


def _decrypt(value: _Words, keys: _Words, a: np.uint64, b: np.uint64) -> _Words:
    right, left = np.divmod(value, a)
    for number in range(ROUNDS - 2, -2, -2):
        right = (right + b - _round(keys[number + 1], left) % b) % b
        left = (left + a - _round(keys[number], right) % a) % a
    return left + a * right


def _round(key: _Words, half: _Words) -> _Words:
    # Half a SplitMix64 is enough: the key is mixed already, and there are several rounds. The
    # result has 40 bits, a half at most 20, so that the modulo favours no value by over 2**-20.
    word = (half + key) * _MULTIPLIERS[0]
    word ^= word >> _ROUND_SHIFTS[0]
    word *= _MULTIPLIERS[1]
    return word >> _ROUND_SHIFTS[1]


def _round_keys(seed: int, epoch: NDArray[Any]) -> _Words:
    start = _mix(np.array([seed % 2**64], np.uint64) + _INCREMENT)  # [1]
    stream = _mix(start + epoch.astype(np.uint64) * _INCREMENT)  # [index]
    numbers = np.arange(1, ROUNDS + 1, dtype=np.uint64) * _INCREMENT  # [rounds]
    return _mix(stream + numbers[:, None])  # [rounds, index]


def _mix(word: _Words) -> _Words:
    word = (word ^ (word >> _SHIFTS[0])) * _MULTIPLIERS[0]
    word = (word ^ (word >> _SHIFTS[1])) * _MULTIPLIERS[1]
    return word ^ (word >> _SHIFTS[2])
