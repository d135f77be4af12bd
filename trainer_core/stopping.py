"""When to stop: at the same step on every process, whoever was asked to."""

from __future__ import annotations

import time

from trainer_core.run import Run

_EVERY = 1.0  # seconds between two questions to all processes
_MOST = 16  # steps between them: a host may be far ahead of its device, and seem faster than it is


class Stopping:
    """Whether all processes stop after a step; asked after each.

    One process knows by itself. Several ask each other about once a second, which costs each two
    or three calls of the coordination service; the next step at which they do is process 0's
    choice, by its clock, so that it is the same for all. A stop that is asked for meanwhile waits
    until then.

    Args:
        run: of which `stopping` says what this process was asked.
        first: the step from which the run goes on.
    """

    def __init__(self, run: Run, first: int) -> None:
        self._run = run
        self._next = first + 1
        self._asked_at, self._asked = time.monotonic(), first

    def reason(self, step: int) -> str:
        """Return why all processes stop after this step; empty where they go on.

        It is the reason of the first process, by index, that was asked to stop.
        """
        run = self._run
        if run.processes == 1:
            return run.stopping.reason
        run.pass_by(step=step)
        if step < self._next:
            return ""
        said = {"reason": run.stopping.reason, "next": self._chosen(step) if run.is_main else None}
        answers = run.gather(said if run.is_main or run.stopping else None)
        self._next = answers[0]["next"]
        for process in sorted(answers):
            if reason := answers[process]["reason"]:
                # So that whoever looks at `run.stopping` sees it on every process.
                run.stopping.set(f"{reason} (process {process})" if process else reason)
                return run.stopping.reason
        return ""

    def _chosen(self, step: int) -> int:
        now = time.monotonic()
        seconds, made = now - self._asked_at, step - self._asked
        self._asked_at, self._asked = now, step
        return step + max(1, min(_MOST, 2 * made, int(made * _EVERY / max(seconds, 1e-9))))
