"""The shuffle is a bijection, and it shuffles.

The statistics are of fixed seeds, so that they never change; their bounds say how likely a
uniformly random shuffle would be to miss them: less than one in a million each.
"""

from __future__ import annotations

import numpy as np
import pytest

from trainer_core.permutation import permute, place

HUGE = [2**31 - 1, 2**32 + 1, 10**12 + 39, 2**40 - 1, 2**40]
SIX_SIGMA = 6.0


@pytest.mark.parametrize("first", range(1, 301, 100))
def test_every_item_comes_once_for_every_small_size(first: int) -> None:
    for size in range(first, first + 100):
        order = permute(np.arange(size), size, seed=7, epoch=size % 3)
        assert sorted(order) == list(range(size)), size
        assert (place(order, size, seed=7, epoch=size % 3) == np.arange(size)).all()


@pytest.mark.parametrize("size", [2**10, 2**16, 2**16 + 1, 99_991, 100_000, 1_000_000])
def test_every_item_comes_once_for_large_sizes(size: int) -> None:
    order = permute(np.arange(size), size, seed=1)
    assert (np.bincount(order, minlength=size) == 1).all()


@pytest.mark.parametrize("size", HUGE)
def test_huge_sizes_have_an_exact_inverse(size: int) -> None:
    sample = np.random.default_rng(0).integers(0, size, 50_000)
    sample[:2] = 0, size - 1
    order = permute(sample, size, seed=3, epoch=2)
    assert order.min() >= 0
    assert order.max() < size
    assert (place(order, size, seed=3, epoch=2) == sample).all()
    assert (permute(place(sample, size, seed=3), size, seed=3) == sample).all()


def test_a_place_depends_on_no_other_place_that_is_asked_for() -> None:
    size = 1003
    index = np.random.default_rng(1).integers(0, size, 60)
    epoch = np.arange(60) // 7
    together = permute(index.reshape(3, 20), size, 5, epoch.reshape(3, 20))
    alone = [int(permute(i, size, 5, e)) for i, e in zip(index, epoch, strict=True)]
    assert together.shape == (3, 20)
    assert together.dtype == np.int64
    assert together.ravel().tolist() == alone


def test_the_order_is_the_same_on_every_machine_and_in_every_version() -> None:
    # A resumed run depends on it: whoever changes these numbers changes every run's data order.
    assert permute(np.arange(8), 1000, seed=0).tolist() == [
        65,
        430,
        551,
        822,
        661,
        962,
        217,
        923,
    ]
    assert permute([0, 1, 2], 2**40, seed=2**70 + 1, epoch=9).tolist() == [
        628192357710,
        838674853816,
        969608997205,
    ]


def test_epochs_and_seeds_give_unrelated_orders() -> None:
    size = 10_000
    keys = [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (0, 2), (2**64 - 1, 0), (0, 2**40)]
    orders = [permute(np.arange(size), size, seed, epoch) for seed, epoch in keys]
    orders.append(np.arange(size))  # as many fixed points as a random shuffle has
    for number, order in enumerate(orders):
        for other in orders[:number]:
            # Agreements of two random orders are Poisson(1): more than 12 once in 10**10.
            assert np.count_nonzero(order == other) <= 12
            assert abs(_correlation(order, other)) < SIX_SIGMA / np.sqrt(size)


@pytest.mark.parametrize("size", [10_000, 65_536, 94_681])
def test_halves_and_neighbours_are_mixed(size: int) -> None:
    order = permute(np.arange(size), size, seed=11)
    half = size // 2
    stayed = np.count_nonzero(order[:half] < half)
    # Hypergeometric: mean size / 4, standard deviation sqrt(size) / 4.
    assert abs(stayed - size / 4) < SIX_SIGMA * np.sqrt(size) / 4
    assert abs(_correlation(order[:-1], order[1:])) < SIX_SIGMA / np.sqrt(size)
    # Two given items are neighbours with probability 2 / size: Poisson(2) over all.
    assert np.count_nonzero(np.abs(np.diff(order)) == 1) <= 14
    # Every residue is mixed too: a stride in the text must not come out as a stride in time.
    table = np.zeros((8, 8))
    np.add.at(table, (np.arange(size) % 8, order % 8), 1)
    assert ((table - size / 64) ** 2 / (size / 64)).sum() < _bound(49)


@pytest.mark.parametrize("size", [2, 3, 5, 12, 33])
def test_every_item_comes_equally_often_at_every_place(size: int) -> None:
    epochs = 4000
    index = np.tile(np.arange(size), epochs)
    order = permute(index, size, seed=0, epoch=np.repeat(np.arange(epochs), size))
    table = np.zeros((size, size))
    np.add.at(table, (index, order), 1)
    expected = epochs / size
    # Rows and columns have fixed sums, which leaves (size - 1)**2 degrees of freedom.
    distance = ((table - expected) ** 2 / expected).sum() * (size - 1) / size
    assert distance < _bound((size - 1) ** 2)


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.corrcoef(one, other)[0, 1])


def _bound(freedom: int) -> float:
    # P(chi-squared > k + 2 sqrt(k x) + 2 x) <= exp(-x): Laurent and Massart (2000), lemma 1.
    x = 14
    return float(freedom + 2 * np.sqrt(freedom * x) + 2 * x)
