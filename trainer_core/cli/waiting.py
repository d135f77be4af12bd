"""A sign of life while a short command works; on a terminal it leaves no trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from trainer_core.terminal.output import is_terminal

if TYPE_CHECKING:
    from trainer_core.defaults.progress import Display


@contextmanager
def waiting(name: str, plain: bool = False) -> Iterator[Callable[[str], None]]:
    """Show what is being done, while entered; call what it gives to say what is done now.

    Args:
        name: what is being done.
        plain: without a terminal too; stdout then holds more than the command's answer.
    """
    display: Display
    if is_terminal():
        from trainer_core.terminal.live import LiveDisplay

        display = LiveDisplay()
    elif plain:
        from trainer_core.terminal.plain import PlainDisplay

        display = PlainDisplay(every=0)
    else:
        yield lambda name: None
        return
    display.phase(name)
    try:
        yield display.phase
    finally:
        display.close()
