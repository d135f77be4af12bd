"""How well byte n-grams predict the held-out text: what a language model has to beat.

Fitted on the training part and measured on the held-out windows that `trainer train` evaluates
on: the first 16 batches of 32 windows of 128 bytes, and all of them. As the language model does,
an n-gram sees nothing before the start of a window. Needs neither jax nor a GPU.

    python benchmarks/trigram.py [PATH]
"""

from __future__ import annotations

import sys
import time
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from trainer_core.defaults.text import Text
from trainer_core.defaults.windows import Windows

ORDERS = (1, 2, 3, 4)
EVALUATED = 16  # batches, the default of `[run] eval_batches`

Grams = NDArray[np.uint64]  # the bytes of an n-gram as one number, the oldest the highest
Floats = NDArray[np.float64]


def main(path: str | None = None) -> None:
    """Print nats per byte of byte n-grams with two kinds of smoothing."""
    settings = Text(path=path)
    windows = Windows(
        path=path,
        length=settings.length,
        batch_size=settings.batch_size,
        held_out=settings.held_out,
    )
    # The windows share no byte, and the last one has a target beyond its end.
    flat = np.append(windows.training[:, :-1].reshape(-1), windows.training[-1, -1])
    held_out = _held_out(windows)
    few = min(EVALUATED * settings.batch_size, len(held_out))
    for name, text in windows.summary.items():
        print(f"{name}: {text}")
    print(f"\nnats per byte                     {few} windows  all {len(held_out)} windows")
    for name, fit in (
        ("interpolated modified Kneser-Ney", kneser_ney),
        ("Witten-Bell", witten_bell),
    ):
        print(name)
        for order in ORDERS:
            start = time.perf_counter()
            nats = -np.log(predict(fit(flat, order), held_out))  # [windows, length]
            took = time.perf_counter() - start
            print(f"  {order}-gram {nats[:few].mean():29.4f} {nats.mean():17.4f}   ({took:.1f} s)")


def _held_out(windows: Windows) -> NDArray[np.uint8]:
    rows = []
    for index in range(windows.held_out_batches):
        batch = windows.held_out_batch(index)
        counts = batch["weights"][:, 0] > 0
        whole = np.column_stack([batch["tokens"], batch["targets"][:, -1:]])
        rows.append(whole[counts].astype(np.uint8))
    return np.concatenate(rows)  # [windows, length + 1]


@attrs.frozen(eq=False)
class Level:
    """The n-grams of one order, and how they share their history's probability.

    P(c | h) = own(h, c) + rest(h) * P(c | h without its oldest byte)

    Attributes:
        order: bytes in an n-gram.
        grams: the n-grams that were seen, ascending; `own`, of each of them.
        histories: their histories, ascending; `rest`, of each of them.
    """

    order: int
    grams: Grams
    own: Floats
    histories: Grams
    rest: Floats


def kneser_ney(text: NDArray[np.uint8], order: int) -> list[Level]:
    """Fit an interpolated modified Kneser-Ney model; its discounts come from the same text.

    Chen and Goodman, "An Empirical Study of Smoothing Techniques for Language Modeling" (1998),
    section 3: D1, D2 and D3+ by the closed form from the counts of counts. Below the highest
    order an n-gram counts once for each byte that was seen before it.

    Args:
        text: [bytes].
        order: bytes in the longest n-gram.

    Returns:
        One level for each order from 1 to the highest.
    """
    grams, counts = np.unique(_grams(text, order), return_counts=True)
    levels = [_discounted(order, grams, counts)]
    for shorter in range(order - 1, 0, -1):
        # The table above has each longer n-gram once: without its oldest byte it counts once.
        grams, counts = np.unique(_without_oldest(grams, shorter), return_counts=True)
        levels.insert(0, _discounted(shorter, grams, counts))
    return levels


def witten_bell(text: NDArray[np.uint8], order: int) -> list[Level]:
    """Fit an interpolated Witten-Bell model: rest(h) = T / (T + N) for T kinds among N bytes.

    Witten and Bell, "The Zero-Frequency Problem" (1991), method C.
    """
    levels = []
    for length in range(1, order + 1):
        grams, counts = np.unique(_grams(text, length), return_counts=True)
        histories, owner = np.unique(grams >> np.uint64(8), return_inverse=True)
        total = np.bincount(owner, counts)
        kinds = np.bincount(owner)
        own = counts / (total + kinds)[owner]
        levels.append(Level(length, grams, own, histories, kinds / (total + kinds)))
    return levels


def predict(levels: list[Level], windows: NDArray[np.uint8]) -> Floats:
    """Return the probability of every byte of a window but the first: [windows, length]."""
    probability = np.full((len(windows), windows.shape[1] - 1), 1 / 256)
    for level in levels:
        first = max(level.order - 2, 0)  # the first target that has so long a history
        grams = _grams(windows, level.order)[:, 1 if level.order == 1 else 0 :]
        own = _lookup(level.grams, level.own, grams, 0.0)
        rest = _lookup(level.histories, level.rest, grams >> np.uint64(8), 1.0)
        probability[:, first:] = own + rest * probability[:, first:]
    return probability


def _grams(text: NDArray[np.uint8], order: int) -> Grams:
    count = text.shape[-1] - order + 1
    grams = np.zeros((*text.shape[:-1], count), np.uint64)
    for offset in range(order):
        grams = (grams << np.uint64(8)) | text[..., offset : offset + count]
    return grams


def _without_oldest(grams: Grams, order: int) -> Grams:
    return grams & np.uint64(256**order - 1)


def _discounted(order: int, grams: Grams, counts: NDArray[Any]) -> Level:
    seen = [np.count_nonzero(counts == times) for times in (1, 2, 3, 4)]
    discounts = np.zeros(4)
    if all(seen):  # else every n-gram is frequent, and no probability need be set aside
        base = seen[0] / (seen[0] + 2 * seen[1])
        discounts[1:] = [n - (n + 1) * base * seen[n] / seen[n - 1] for n in (1, 2, 3)]
    discount = discounts[np.minimum(counts, 3)]
    histories, owner = np.unique(grams >> np.uint64(8), return_inverse=True)
    total = np.bincount(owner, counts)
    rest = np.bincount(owner, discount) / total
    return Level(order, grams, (counts - discount) / total[owner], histories, rest)


def _lookup(keys: Grams, values: Floats, wanted: Grams, missing: float) -> Floats:
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], missing)


if __name__ == "__main__":
    main(*sys.argv[1:2])
