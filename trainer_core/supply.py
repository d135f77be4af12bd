"""Takes a run's batches from its data source, and says where the devices wait for them."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer_core.types import Batch

logger = logging.getLogger("trainer_core")

_STEPS = 10  # and at least
_SECONDS = 1.0  # of waiting, before anything is said; and no more than once in
_SILENT = 300.0  # seconds
_SHARE = 0.2
_SLOW = 0.0005  # seconds for a batch; a faster source is not worth a thread that looks on


class Supply:
    """Gives batches, and warns once the devices spent a fifth of their time without one.

    The source works on the host while the devices are at the step before: only what it takes
    longer than they do is waiting.

    Args:
        give: returns the batch after a step.
    """

    def __init__(self, give: Callable[[int], Batch]) -> None:
        self._give = give
        self._seconds = 0.0  # for the last batch
        self._silent_until = 0.0
        self._begin()

    def batch(self, step: int, running: Mapping[str, Any]) -> Batch:
        """Return the batch of a step.

        Args:
            step: which.
            running: the metrics of the step before, still on the devices; empty before the first.
        """
        finished: list[float] = []
        if running and self._seconds >= _SLOW:
            threading.Thread(target=_wait, args=(running, finished), daemon=True).start()
        began = time.monotonic()
        batch = self._give(step)
        now = time.monotonic()
        self._seconds = now - began
        if running:
            self._count(now - max(began, *finished) if finished else 0.0)
        return batch

    def _begin(self) -> None:
        self._since, self._steps, self._waited = time.monotonic(), 0, 0.0

    def _count(self, seconds: float) -> None:
        self._steps += 1
        self._waited += seconds
        now = time.monotonic()
        if self._steps < _STEPS or self._waited < _SECONDS or now < self._silent_until:
            return
        share = self._waited / (now - self._since)
        if share > _SHARE:
            logger.warning(
                "waiting for data: %.0f%% of the last %.0f s; the data source takes %.2g s for a "
                "batch, longer than the devices for a step",
                100 * share,
                now - self._since,
                self._seconds,
            )
            self._silent_until = now + _SILENT
        self._begin()


def _wait(running: Mapping[str, Any], finished: list[float]) -> None:
    """Note when the devices are done; with what, the loop finds out."""
    with contextlib.suppress(Exception):
        for each in running.values():
            each.block_until_ready()
    finished.append(time.monotonic())
