"""Stop a run after a number of steps, with the schedules of the whole run."""

from __future__ import annotations

from attrs.validators import ge

from trainer_core import hookimpl, plugin, setting
from trainer_core.run import Run


@plugin
class StopAt:
    """Unlike a smaller `run.steps`, it leaves a schedule that falls until the last step alone."""

    step: int = setting(1, "the last step that is made", unit="steps", check=ge(1))

    @hookimpl
    def start(self, run: Run, step: int) -> None:
        self._stop_after_the_next(run, step)

    @hookimpl
    def report(self, run: Run, step: int) -> None:
        self._stop_after_the_next(run, step)

    def _stop_after_the_next(self, run: Run, step: int) -> None:
        # The loop reports a step while it makes the next, after which it looks for such a request.
        # A run that goes on from here later goes on to its end.
        if step == self.step - 1:
            run.stop(f"compared until step {self.step}")
