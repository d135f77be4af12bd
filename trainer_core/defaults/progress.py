"""`[plugins.progress]`: what a person, or a program, sees of a run."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import attrs
from attrs.validators import ge

from trainer_core.plugin import hookimpl, plugin, setting

if TYPE_CHECKING:
    from trainer_core.program import Program
    from trainer_core.run import Run
    from trainer_core.types import Metrics

STYLES = ("auto", "live", "plain", "json", "quiet")


@plugin
class Progress:
    """Shows a run on stdout, on the main process alone: a live view on a terminal, else lines."""

    style: str = setting(
        "auto",
        "auto is live on a terminal, else plain; json: one object a step; quiet: nothing",
        choices=STYLES,
        may_change=True,
    )
    every: float = setting(
        5.0, "between two plain lines", unit="seconds", check=ge(0), may_change=True
    )
    _display: Any = attrs.field(init=False, default=None)

    @property
    def display(self) -> Any:
        """What shows the run; made when it is first needed."""
        if self._display is None:
            self._display = _make(self.style, self.every)
        return self._display

    @hookimpl
    def phase(self, run: Run, name: str) -> None:
        if run.is_main:
            self.display.phase(name)

    @hookimpl
    def start(self, run: Run, program: Program, step: int) -> None:
        if run.is_main:
            self.display.start(run, program, step)

    @hookimpl
    def report(self, run: Run, step: int, metrics: Metrics) -> None:
        if run.is_main:
            self.display.report(step, metrics)

    @hookimpl
    def close(self) -> None:
        if self._display is not None:
            self._display.close()


def _make(style: str, every: float) -> Any:
    if style == "quiet":
        from trainer_core.terminal.machine import QuietDisplay

        return QuietDisplay()
    if style == "json":
        from trainer_core.terminal.machine import JsonDisplay

        return JsonDisplay()
    from trainer_core.terminal.plain import PlainDisplay

    return PlainDisplay(every)
