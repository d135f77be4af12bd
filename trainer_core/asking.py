"""Asks a data source for its batches, and says so while it does not answer."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

from trainer_core.run import Run
from trainer_core.stacks import write_stacks
from trainer_core.types import Batch

logger = logging.getLogger("trainer_core")
LOOK = 1.0  # seconds between two looks; counted, so that a machine that slept accuses nobody
FIRST = 10  # looks until it is said for the first time; then each time after twice as many


class Asking:
    """Calls a data source; it costs a microsecond, and a thread that looks on once a second.

    The thread begins with a question, and ends where it finds none: who asks no more has none.

    Args:
        run: whose source it is.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._call: tuple[str, int] | None = None  # what is asked for
        self._is_watched = False
        self._lock = threading.Lock()

    def __call__(self, give: Callable[[int], Any], what: str, index: int) -> Batch:
        """Return `give(index)`; meanwhile it is waited for `what`, a format of the index."""
        self._call = (what, index)  # before it is asked whether somebody looks; see `leave`
        if not self._is_watched:
            self._watch()
        try:
            batch: Batch = give(index)
        finally:
            self._call = None
        return batch

    def _watch(self) -> None:
        with self._lock:
            if self._is_watched:
                return
            self._is_watched = True
            threading.Thread(
                target=_look, args=(weakref.ref(self), self._call), name="asking", daemon=True
            ).start()

    def leave(self) -> bool:
        """Return whether the thread that looks on may end, as nothing is asked for."""
        with self._lock:
            # In this order: a question that comes now either is seen, or finds that nobody looks.
            self._is_watched = False
            self._is_watched = self._call is not None
            return not self._is_watched

    @property
    def call(self) -> tuple[str, int] | None:
        """What is asked for now: another object for each call."""
        return self._call

    def say(self, call: tuple[str, int], seconds: float) -> None:
        """Warn that it has not come for so long."""
        run, (what, index) = self._run, call
        written = write_stacks(run.directory, run.process) if run.directory.is_dir() else None
        logger.warning(
            "waiting for data: [data] use = %s has not given %s for %.0f s%s",
            run.config["data"]["use"],
            what.format(index),
            seconds,
            f"; where it stands: {written}" if written else "",
        )


def _look(asking: weakref.ref[Asking], before: tuple[str, int] | None) -> None:
    looks, due = 0, FIRST
    while True:
        time.sleep(LOOK)
        found = asking()
        if found is None or found.leave():
            return
        call = found.call
        if call is None or call is not before:
            before, looks, due = call, 0, FIRST
            continue
        looks += 1
        if looks >= due:
            found.say(call, looks * LOOK)
            due = 2 * looks
        del found
