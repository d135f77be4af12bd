"""Ctrl-C and SIGTERM: a first one stops the run in order, a second one at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, TypeVar

from trainer_core.run import StopRequest

Result = TypeVar("Result")
_WORKER = "trainer-work"
_SHOW_CURSOR = b"\x1b[?25h"  # a live view hides it
_NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}


class Interrupted(KeyboardInterrupt):
    """A stop was asked for before the first step: there is nothing to save."""


class SignalHandlers:
    """While entered, a signal asks its `stopping` for a stop at the next step boundary.

    Until `stopping` is deferred there is nothing to finish, so the signal raises Interrupted where
    the main thread stands. Outside the main thread Python allows no handlers, and none is set.
    """

    def __init__(self) -> None:
        self.stopping = StopRequest()
        self._interrupted = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> SignalHandlers:
        self.install()
        return self

    def install(self) -> None:
        """Handle the signals; again, where other code took one: JAX does when it connects."""
        if threading.current_thread() is threading.main_thread():
            for number in _NAMES:
                before = signal.signal(number, self._receive)
                self._previous.setdefault(number, before)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self._interrupted:
                _leave_at_once()
            self._interrupted = True
        self.stopping.set(_NAMES[signal.Signals(number)])
        if not self.stopping.is_deferred:
            raise Interrupted


def _leave_at_once() -> None:
    terminal = sys.__stdout__
    if terminal is not None and not terminal.closed and terminal.isatty():
        os.write(terminal.fileno(), _SHOW_CURSOR)
    os._exit(128 + signal.SIGINT)


def is_working() -> bool:
    """Whether a thread of `interruptible` was left behind and still works.

    The interpreter cannot be shut down under it: waiting would last, not waiting would crash.
    """
    return any(thread.name == _WORKER for thread in threading.enumerate())


def interruptible(work: Callable[[], Result]) -> Result:
    """Run something long in a thread, so that a signal reaches the main thread meanwhile.

    Python runs signal handlers between two bytecodes of the main thread. XLA compiles in one; and
    a handler that raises where jax's C++ calls back into Python would take the process down.
    """
    if threading.current_thread() is not threading.main_thread():
        return work()
    outcome: dict[str, Any] = {}

    def run() -> None:
        try:
            outcome["result"] = work()
        except BaseException as error:
            outcome["error"] = error

    worker = threading.Thread(target=run, name=_WORKER, daemon=True)
    worker.start()
    while worker.is_alive():
        worker.join(0.1)
    if "error" in outcome:
        raise outcome["error"]
    result: Result = outcome["result"]
    return result
