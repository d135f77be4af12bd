"""Examples from text: which windows of it make which batch, and which are held out.

Needs no jax, so that a process that only makes batches need not load it.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import attrs
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from trainer_core.defaults.corpus import Bytes, Corpus, read_corpus, wrong
from trainer_core.errors import UserError
from trainer_core.permutation import permute


@attrs.frozen(kw_only=True, slots=False, eq=False)
class Windows:
    """This process's rows of every batch, as a pure function of (seed, step).

    Window w reads the bytes [w * length, w * length + length); its targets are those one byte
    further. The text is cut once: the windows of the tail are held out, and no training window
    reads or predicts a byte of theirs. The text is read when it is first needed.

    Attributes:
        path: the text, as `read_corpus` takes it.
        length: bytes in a window.
        batch_size: windows in a global batch.
        held_out: the fraction of the windows that training never sees.
        seed: of the order in which training sees the others.
        process: which of `processes` equal parts of the rows of each batch is made here.
    """

    path: str | None = None
    length: int
    batch_size: int
    held_out: float
    seed: int = 0
    process: int = 0
    processes: int = 1

    def __attrs_post_init__(self) -> None:
        if self.batch_size % self.processes:
            raise UserError(
                f"[data] batch_size = {self.batch_size}: cannot be split equally among "
                f"{self.processes} processes; give a multiple of {self.processes}",
                "data.batch_size",
            )

    @cached_property
    def corpus(self) -> Corpus:
        """The text, read at the first access."""
        return read_corpus(self.path)

    @property
    def training(self) -> Bytes:
        """Every training window with its last target: [windows, length + 1] uint8, a view."""
        return self._parts[0]

    @property
    def tail(self) -> Bytes:
        """Every held-out window with its last target: [windows, length + 1] uint8, a view."""
        return self._parts[1]

    @property
    def held_out_batches(self) -> int:
        """How many batches it takes to see every held-out window."""
        return -(-len(self.tail) // self.batch_size)

    @property
    def summary(self) -> dict[str, str]:
        """What the text is, and how much of it there is."""
        files = "1 file" if self.corpus.files == 1 else f"{self.corpus.files:,} files"
        windows = len(self.training) + len(self.tail)
        share = f"{100 * self.held_out:.3g}%" if self.held_out else "none"
        size = f"{_bytes(self.corpus.text.size)}, {windows:,} windows of {self.length} tokens"
        return {
            "data": f"{self.corpus.name}, {files}",
            "size": f"{size}, {share} held out",
        }

    def batch(self, step: int) -> dict[str, NDArray[Any]]:
        """Return this process's rows of a step's batch; costs the same at every step.

        Example number step * batch_size + row of the run is one of epoch number // windows; each
        epoch has its own order, and an epoch may end amid a batch.

        Args:
            step: counted from 0.

        Returns:
            `tokens` and `targets` [rows, length] int32, `weights` [rows, length] float32 ones.
        """
        windows = len(self.training)
        epoch, index = np.divmod(self._rows(step), windows)
        window = permute(index, windows, self.seed, epoch)
        return _examples(self.training[window], np.ones(len(window), bool))

    def held_out_batch(self, index: int) -> dict[str, NDArray[Any]]:
        """Return this process's rows of a held-out batch, in an order that no seed changes.

        The order is shuffled, so that the first few batches are a sample of the whole part.
        The rows by which the last batch is too long have weight 0 and repeat a window, so that
        each held-out window counts exactly once.

        Args:
            index: from 0 to `held_out_batches` - 1.
        """
        if not 0 <= index < self.held_out_batches:
            raise IndexError(f"held-out batch {index} of {self.held_out_batches}")
        row = self._rows(index)
        windows = len(self.tail)
        window = permute(np.minimum(row, windows - 1), windows, seed=0)
        return _examples(self.tail[window], row < windows)

    def __getstate__(self) -> dict[str, Any]:
        # What was read is read again where it is needed, instead of being sent there.
        return {field.name: getattr(self, field.name) for field in attrs.fields(Windows)}

    def _rows(self, batch: int) -> NDArray[np.int64]:
        rows = self.batch_size // self.processes
        start = batch * self.batch_size + self.process * rows
        return np.arange(start, start + rows, dtype=np.int64)

    @cached_property
    def _parts(self) -> tuple[Bytes, Bytes]:
        text = self.corpus.text
        if not self.held_out:
            self._require(text.size, self.length + 1, "one window")
            return _windows(text, self.length), _windows(text[:0], self.length)
        needed = 2 * (self.length + 1)
        self._require(text.size, needed, "one window to train on and one to hold out")
        # Each part ends with a byte that is only a target.
        windows = (text.size - 2) // self.length
        tail = round(windows * self.held_out)
        if not 0 < tail < windows:
            part, share = ("held-out", "larger") if tail == 0 else ("training", "smaller")
            raise UserError(
                f"[data] held_out = {self.held_out}: leaves no {part} window of the {windows} "
                f"windows of {self.length} tokens; give a {share} one, or more text in "
                f"[data] path",
                "data.held_out",
                "data.length",
                "data.path",
            )
        cut = (windows - tail) * self.length + 1
        return _windows(text[:cut], self.length), _windows(text[cut:], self.length)

    def _require(self, have: int, needed: int, purpose: str) -> None:
        if have == 0:
            raise wrong(self.path, "there is no text in it; give more")
        if have < needed:
            raise wrong(
                self.path,
                f"{have} bytes are too few for {purpose}, which take {needed}; give more text, "
                f"or a [data] length below {self.length}",
            )


def _windows(text: Bytes, length: int) -> Bytes:
    if text.size <= length:
        return np.empty((0, length + 1), np.uint8)
    return sliding_window_view(text, length + 1)[::length]


def _examples(window: Bytes, counts: NDArray[np.bool_]) -> dict[str, NDArray[Any]]:
    targets = window[:, 1:].astype(np.int32)  # [rows, length]
    weights = np.empty(targets.shape, np.float32)
    weights[:] = counts[:, None]
    return {"tokens": window[:, :-1].astype(np.int32), "targets": targets, "weights": weights}


def _bytes(size: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size} bytes"
