"""Where the threads of a process stand, written down before it ends hard."""

from __future__ import annotations

import faulthandler
from pathlib import Path

from trainer_core.files import opened_anew


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
