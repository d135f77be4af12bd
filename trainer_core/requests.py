"""What a run is asked for from outside: to stop, or to save; the same on every process."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import attrs

from trainer_core.lock import RunLock
from trainer_core.run import Run

logger = logging.getLogger("trainer_core")
SAVE = "checkpoint_now"  # a file in the run directory
_EVERY = 1.0  # seconds between two looks for it, and between two questions to all processes
_MOST = 16  # steps between them: a host may be far ahead of its device, and seem faster than it is


def asks_for_a_save(directory: Path) -> bool:
    """Whether there is a file `checkpoint_now` in a run directory."""
    path = directory / SAVE
    return path.exists() and not path.is_dir()


@attrs.frozen
class Asked:
    """What is to be done after a step.

    Attributes:
        stop: why all processes stop; empty where they go on.
        save: whether there is a file `checkpoint_now` in the run directory.
    """

    stop: str = ""
    save: bool = False


class Requests:
    """What all processes do after a step; asked after each.

    One process knows by itself. Several ask each other about once a second, which costs each two
    or three calls of the coordination service; the next step at which they do is process 0's
    choice, by its clock, so that it is the same for all. What is asked for meanwhile waits until
    then.

    Args:
        run: of which `stopping` says what this process was asked.
        first: the step from which the run goes on.
        lock: of the run directory, which is looked at as often.
    """

    def __init__(self, run: Run, first: int, lock: RunLock) -> None:
        self._run = run
        self._lock = lock
        self._next = first + 1
        self._asked_at, self._asked = time.monotonic(), first
        self._looked_at = 0.0
        self._has_warned = False

    def after(self, step: int) -> Asked:
        """Return what all processes do after this step.

        A stop has the reason of the first process, by index, that was asked to.

        Raises:
            RunError: the run directory is no longer there.
        """
        run = self._run
        if run.processes == 1:
            return Asked(run.stopping.reason, self._is_there())
        run.pass_by(step=step)
        if step < self._next:
            return Asked()
        said: dict[str, object] = {"stop": run.stopping.reason}
        if run.is_main:
            said |= {"next": self._chosen(step), "save": self._is_there()}
        answers = run.gather(said if run.is_main or run.stopping else None)
        self._next = answers[0]["next"]
        stop = ""
        for process in sorted(answers):
            if reason := answers[process]["stop"]:
                # So that whoever looks at `run.stopping` sees it on every process.
                run.stopping.set(f"{reason} (process {process})" if process else reason)
                stop = run.stopping.reason
                break
        return Asked(stop, answers[0]["save"])

    def saved(self) -> None:
        """Remove the file: the save that it asked for has begun."""
        if self._run.is_main and asks_for_a_save(self._run.directory):
            (self._run.directory / SAVE).unlink(missing_ok=True)

    def _is_there(self) -> bool:
        # Not at every step of a fast run: a file system may be at the end of a network.
        now = time.monotonic()
        if now - self._looked_at < _EVERY:
            return False
        self._looked_at = now
        self._lock.check()
        path = self._run.directory / SAVE
        there = asks_for_a_save(self._run.directory)
        if not there and path.exists() and not self._has_warned:
            self._has_warned = True
            logger.warning("%s is a folder, and asks for nothing; `touch` makes a file", path)
        if there and self._run.config["checkpoint"]["use"] == "none":
            logger.warning(
                '%s asks for a checkpoint, and this run saves none: [checkpoint] use = "none"',
                path,
            )
        return there

    def _chosen(self, step: int) -> int:
        now = time.monotonic()
        seconds, made = now - self._asked_at, step - self._asked
        self._asked_at, self._asked = now, step
        return step + max(1, min(_MOST, 2 * made, int(made * _EVERY / max(seconds, 1e-9))))
