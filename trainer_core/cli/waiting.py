"""A sign of life while a short command works, on a terminal alone; it leaves no trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from trainer_core.terminal.output import is_terminal


@contextmanager
def waiting(name: str) -> Iterator[Callable[[str], None]]:
    """Show what is being done, while entered; call what it gives to say what is done now."""
    if not is_terminal():
        yield lambda name: None
        return
    from trainer_core.terminal.live import LiveDisplay

    display = LiveDisplay()
    display.phase(name)
    try:
        yield display.phase
    finally:
        display.close()
