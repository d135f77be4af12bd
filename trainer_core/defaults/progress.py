"""`[plugins.progress]`: what a person, or a program, sees of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import attrs
from attrs.validators import ge

from trainer_core.plugin import hookimpl, plugin, setting

if TYPE_CHECKING:
    from trainer_core.program import Program
    from trainer_core.run import Run
    from trainer_core.types import Metrics


class Display(Protocol):
    """One way to show a run; it may be closed before it was told anything, and twice."""

    def phase(self, name: str) -> None: ...
    def show(self, run: Run, program: Program) -> None: ...
    def start(self, run: Run, step: int) -> None: ...
    def report(self, step: int, metrics: Metrics) -> None: ...
    def note(self, text: str) -> None: ...
    def close(self) -> None: ...


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
    _display: Display | None = attrs.field(init=False, default=None)

    @property
    def display(self) -> Display:
        """What shows the run; made when it is first needed."""
        if self._display is None:
            self._display = make_display(self.style, self.every)
        return self._display

    @hookimpl
    def phase(self, run: Run, name: str, program: Program | None) -> None:
        if not run.is_main:
            self.close()
            return
        # A run that is finished already is restored, and then has nothing to show.
        if program is not None and name != "restoring":
            self.display.show(run, program)
        self.display.phase(name)

    @hookimpl
    def start(self, run: Run, step: int) -> None:
        if run.is_main:
            self.display.start(run, step)

    @hookimpl
    def report(self, run: Run, step: int, metrics: Metrics) -> None:
        if run.is_main:
            self.display.report(step, metrics)

    @hookimpl(trylast=True)
    def save(self, run: Run, step: int) -> None:
        """Whoever asked for this save by a file shall know that it was heard."""
        from trainer_core.requests import SAVE, asks_for_a_save

        saves = run.config["checkpoint"]["use"] != "none"
        if run.is_main and saves and asks_for_a_save(run.directory):
            self.display.note(f"{SAVE}: step {step:,} is saved")

    @hookimpl
    def close(self) -> None:
        display, self._display = self._display, None
        if display is not None:
            display.close()


def make_display(style: str, every: float) -> Display:
    """Return what shows a run in one of the `STYLES`."""
    from trainer_core.terminal.output import is_terminal

    if style == "quiet":
        from trainer_core.terminal.machine import QuietDisplay

        return QuietDisplay()
    if style == "json":
        from trainer_core.terminal.machine import JsonDisplay

        return JsonDisplay()
    if style == "live" or (style == "auto" and is_terminal()):
        from trainer_core.terminal.live import LiveDisplay

        return LiveDisplay()
    from trainer_core.terminal.plain import PlainDisplay

    return PlainDisplay(every)
