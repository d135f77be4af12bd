"""A run as plain lines, for files and pipes."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from trainer_core.terminal.lines import print_step
from trainer_core.terminal.pace import Pace
from trainer_core.terminal.page import Page
from trainer_core.terminal.summary import STOPPING, Summary

if TYPE_CHECKING:
    from trainer_core.program import Program
    from trainer_core.run import Run
    from trainer_core.types import Metrics

HEARTBEAT = 10.0  # seconds of silence after which a phase says that it is still there


class PlainDisplay:
    """Lines every few seconds, at each evaluation, and for the first and the last step.

    Args:
        every: seconds between two lines.
    """

    def __init__(self, every: float) -> None:
        self._page = Page()
        self._summary = Summary(self._page)
        self._every = every
        self._run: Run | None = None
        self._pace: Pace | None = None
        self._phase: tuple[str, float] | None = None
        self._spoke = time.monotonic()
        self._step_shown = float("-inf")
        self._ended = threading.Event()
        self._heart: threading.Thread | None = None

    def phase(self, name: str) -> None:
        self._phase = (name, time.monotonic())
        if self._heart is None:
            self._heart = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
            self._heart.start()

    def show(self, run: Run, program: Program) -> None:
        if not self._summary.is_shown:
            self._summary.show(run, program)
            self._spoke = time.monotonic()

    def start(self, run: Run, step: int) -> None:
        self._summary.end(run, step)
        self._spoke = time.monotonic()
        self._run, self._pace = run, Pace(run.settings.steps)

    def report(self, step: int, metrics: Metrics) -> None:
        pace = self._pace
        assert pace is not None
        now = time.monotonic()
        pace.add(step, now, metrics.get("tokens_per_second"))
        evaluated = any(name.startswith("eval") for name in metrics)
        if evaluated or step == pace.steps or now - self._step_shown >= self._every:
            self._step_shown = self._spoke = now
            # A line has room for one of the two.
            left = None if evaluated or step == pace.steps else pace.seconds_left(now)
            print_step(self._page, step, pace.steps, pace.smoothed(metrics), left)

    def note(self, text: str) -> None:
        self._page.line(text)

    def close(self) -> None:
        self._ended.set()
        if self._heart is not None and self._heart.is_alive():  # Ctrl-C may have come before
            self._heart.join()

    def _beat(self) -> None:
        told = False
        while not self._ended.wait(0.2):
            if self._run is not None and self._run.stopping and not told:
                told = True
                self._page.line(f"{self._run.stopping.reason} {STOPPING}")
            name, began = self._phase or ("", 0.0)
            now = time.monotonic()
            if name and now - max(self._spoke, began) >= HEARTBEAT:
                self._spoke = now
                self._page.line(f"{name} ... {now - began:.0f} s")
