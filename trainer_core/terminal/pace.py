"""How fast a run goes, and how long it still takes."""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainer_core.types import Metrics

_WINDOW = 60.0  # seconds: long enough to average over evaluations and saves
_MARK_EVERY = 0.5
_SMOOTHING = 3.0  # seconds


class Pace:
    """The steps of the last minute, by the clock.

    Attributes:
        tokens_per_second: smoothed, so that it can be read while it changes.

    Args:
        steps: of the whole run.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.tokens_per_second: float | None = None
        self._reports = 0
        self._marks: deque[tuple[float, int]] = deque()
        self._latest: tuple[float, int] | None = None

    def add(self, step: int, now: float, tokens_per_second: float | None = None) -> None:
        """Note that a step was finished at this time."""
        if tokens_per_second is not None:
            self._smooth(now, tokens_per_second)
        self._reports += 1
        self._latest = (now, step)
        if not self._marks or now - self._marks[-1][0] >= _MARK_EVERY:
            self._marks.append((now, step))
        while len(self._marks) > 1 and now - self._marks[0][0] > _WINDOW:
            self._marks.popleft()

    def seconds_left(self, now: float) -> float | None:
        """Return how long the rest takes at this pace; None while there is no pace yet."""
        rate = self.steps_per_second
        if self._latest is None or rate is None:
            return None
        at, step = self._latest
        return max(0.0, (self.steps - step) / rate - (now - at))

    @property
    def steps_per_second(self) -> float | None:
        """Over the last minute; None while there is no pace yet."""
        if self._latest is None or not self._marks:
            return None
        then, first = self._marks[0]
        at, step = self._latest
        return (step - first) / (at - then) if step > first and at > then else None

    def smoothed(self, metrics: Metrics) -> Metrics:
        """Return a step's metrics with the rate that can be read, of tokens or else of steps."""
        if self.tokens_per_second is not None:
            return {**metrics, "tokens_per_second": self.tokens_per_second}
        rate = self.steps_per_second
        return metrics if rate is None else {**metrics, "steps_per_second": rate}

    def _smooth(self, now: float, measured: float) -> None:
        # The first step pays for caches and buffers, and says nothing of the others.
        if self.tokens_per_second is None or self._latest is None or self._reports < 2:
            self.tokens_per_second = measured
            return
        weight = 1 - math.exp(-(now - self._latest[0]) / _SMOOTHING)
        self.tokens_per_second += weight * (measured - self.tokens_per_second)
