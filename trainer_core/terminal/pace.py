"""How fast a run goes, and how long it still takes."""

from __future__ import annotations

from collections import deque

_WINDOW = 60.0  # seconds: long enough to average over evaluations and saves
_MARK_EVERY = 0.5


class Pace:
    """The steps of the last minute, by the clock.

    Args:
        steps: of the whole run.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self._marks: deque[tuple[float, int]] = deque()
        self._latest: tuple[float, int] | None = None

    def add(self, step: int, now: float) -> None:
        """Note that a step was finished at this time."""
        self._latest = (now, step)
        if not self._marks or now - self._marks[-1][0] >= _MARK_EVERY:
            self._marks.append((now, step))
        while len(self._marks) > 1 and now - self._marks[0][0] > _WINDOW:
            self._marks.popleft()

    def seconds_left(self, now: float) -> float | None:
        """Return how long the rest takes at this pace; None while there is no pace yet."""
        if self._latest is None or not self._marks:
            return None
        then, first = self._marks[0]
        at, step = self._latest
        if step == first or at <= then:
            return None
        seconds = (self.steps - step) * (at - then) / (step - first)
        return max(0.0, seconds - (now - at))
