"""A run on a terminal: two lines that are redrawn, and a line that stays for each evaluation."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rich.live import Live
from rich.text import Text

from trainer_core.terminal.figures import duration
from trainer_core.terminal.lines import GAP, extras, fields, in_lines, print_step, width
from trainer_core.terminal.pace import Pace
from trainer_core.terminal.page import WIDTH, Page, Part, assembled, terminal_console
from trainer_core.terminal.summary import STOPPING, Summary

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions

    from trainer_core.program import Program
    from trainer_core.run import Run
    from trainer_core.types import Metrics

REDRAWN = 8  # times a second; a redraw takes under a millisecond of one core
_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_SPINNER_ASCII = "|/-\\"
_STYLE = "cyan"


class LiveDisplay:
    """Redraws itself in a thread; the training loop only leaves its numbers here."""

    def __init__(self) -> None:
        self._console = terminal_console()
        self._page = Page(self._console)
        self._summary = Summary(self._page)
        self._blank = False  # whether a blank line parts what is redrawn from what stays
        self._live = Live(self, console=self._console, refresh_per_second=REDRAWN, transient=True)
        self._phase = ("", 0.0)
        self._run: Run | None = None
        self._pace: Pace | None = None
        self._step = 0
        self._metrics: Metrics = {}
        self._eval: Metrics = {}

    def phase(self, name: str) -> None:
        self._phase = (name, time.monotonic())
        if not self._live.is_started:
            self._live.start()

    def show(self, run: Run, program: Program) -> None:
        if not self._summary.is_shown:
            self._page.line()
            self._summary.show(run, program)
            self._blank = True

    def start(self, run: Run, step: int) -> None:
        self._blank = False
        self._summary.end(run, step)
        self._run, self._step, self._pace = run, step, Pace(run.settings.steps)

    def report(self, step: int, metrics: Metrics) -> None:
        pace = self._pace
        assert pace is not None
        pace.add(step, time.monotonic(), metrics.get("tokens_per_second"))
        self._step, self._metrics = step, pace.smoothed(metrics)
        evaluated = {name: value for name, value in metrics.items() if name.startswith("eval")}
        if evaluated:
            self._eval, self._blank = evaluated, True
            print_step(self._page, step, pace.steps, self._metrics)

    def note(self, text: str) -> None:
        self._page.line(text)

    def close(self) -> None:
        if self._live.is_started:
            self._live.stop()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        columns = min(WIDTH, options.max_width)
        lines = [self._bar(columns, options.ascii_only), *self._numbers(columns)]
        if self._blank:
            lines.insert(0, [])
        if self._run is not None and self._run.stopping:
            lines.append([(f"  {self._run.stopping.reason} {STOPPING}", "yellow")])
        for line in lines:
            text = assembled(line)
            text.truncate(options.max_width)
            yield text

    def _bar(self, columns: int, ascii_only: bool) -> list[Part]:
        name, began = self._phase
        now = time.monotonic()
        elapsed = now - began
        frames = _SPINNER_ASCII if ascii_only else _SPINNER
        spinner = frames[int(now * REDRAWN) % len(frames)]
        waiting = f" {duration(elapsed)}" if name != "training" and elapsed >= 1 else ""
        left: list[Part] = [(f"{spinner} ", _STYLE), f"{name}{waiting}"]
        pace = self._pace
        if pace is None:
            return left
        left.append(" " * max(1, 18 - width(left)))  # "evaluating 0:01"
        counted = f"{self._step:>{len(f'{pace.steps:,}')},}/{pace.steps:,}"
        remaining = pace.seconds_left(now)
        time_left = f"{duration(remaining):>7} left" if remaining is not None else " " * 12
        room = columns - width(left) - len(counted) - len(time_left) - 2
        filled = max(0, room) * self._step // pace.steps
        done, rest = ("#", "-") if ascii_only else ("━", "─")
        bar: list[Part] = [(done * filled, _STYLE), (rest * (room - filled), "bright_black")]
        return [*left, *bar, GAP, counted, (time_left, "dim")]

    def _numbers(self, columns: int) -> Iterator[list[Part]]:
        """The latest metrics, in as many lines as they need."""
        shown: dict[str, Any] = {**self._metrics, **self._eval}
        yield from in_lines([*fields(shown), *extras(shown)], columns, GAP)
