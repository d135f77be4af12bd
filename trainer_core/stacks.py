"""Where the threads of a process stand, written down before it ends hard."""

from __future__ import annotations

import faulthandler
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from trainer_core.files import opened_anew
from trainer_core.terminal.errors import say_error
from trainer_core.terminal.output import flush

_WRITING = 5.0  # seconds; what is written on may be the reason of the hang: a disk, or a network


def stacks(directory: Path, process: int) -> Path:
    """Return where a process writes what its threads were doing when it ended hard."""
    return directory / f"stacks-{process}.txt"


def write_stacks(directory: Path, process: int) -> Path | None:
    """Write what every thread of this process is doing; None where it cannot be written."""
    path = stacks(directory, process)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with opened_anew(path) as file:
            faulthandler.dump_traceback(file, all_threads=True)
    except OSError:
        return None
    return path


def end_hard(
    errors: Sequence[str], directory: Path, process: int, last: Callable[[], None] = lambda: None
) -> NoReturn:
    """Say what is wrong, and where this process was, and end it, whatever its threads do.

    Args:
        errors: one text each.
        directory: of the run.
        process: the index of this one.
        last: called when all is said.
    """

    def say_where() -> None:
        if written := write_stacks(directory, process):
            say_error(f"where this process was: {written}")

    try:
        for error in errors:
            say_error(error)
        flush()
        writing = threading.Thread(target=say_where, daemon=True)
        writing.start()
        writing.join(_WRITING)
        last()
    finally:  # a thread that ends otherwise would leave the process as it is
        os._exit(1)
