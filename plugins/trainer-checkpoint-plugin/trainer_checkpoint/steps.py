"""The folders of a run's checkpoints: which steps there are, how they go, or are set aside.

Layout: `checkpoints/<step>` is a whole checkpoint; it appears by one rename, when all of it is
written. Every other name is something else, and is never read: a save that is under way
(`<step>.orbax-checkpoint-tmp`), a folder that is being deleted (`<step>.deleting`), or one that
could not be trusted (`<step>.damaged`).
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

STATE = "state"  # the arrays
META = "meta"  # what they are, and how to check them
META_FILE = "metadata"  # the name that Orbax gives a JSON item
DATA = "data"  # where the data source is, one file a process
_UNFINISHED = ".orbax-checkpoint-tmp"
_DELETING = ".deleting"
_DAMAGED = ".damaged"


def data_file(process: int, processes: int) -> str:
    """Return the name of the file with the position of a process's data source."""
    return f"process_{process}-of-{processes}.json"


def steps(directory: Path) -> list[int]:
    """Return the steps that have a folder in a folder of checkpoints, ascending.

    Whether such a folder can be trusted is only known after reading it.
    """
    if not directory.is_dir():
        return []
    return sorted(int(path.name) for path in _named_as_steps(directory) if path.is_dir())


def no_folders(directory: Path) -> list[int]:
    """Return the steps in whose place something lies that is no folder."""
    return sorted(int(path.name) for path in _named_as_steps(directory) if not path.is_dir())


def delete(directory: Path, step: int) -> None:
    """Delete a checkpoint."""
    # Deleting many files takes time; a rename does not, so that a process that is killed here
    # leaves no half of a checkpoint under the name of a whole one.
    doomed = (directory / str(step)).rename(directory / f"{step}{_DELETING}")
    shutil.rmtree(doomed, ignore_errors=True)


def settle(directory: Path, step: int) -> None:
    """Wait until a checkpoint is on the disk for good, where no power failure takes it back.

    TensorStore does so with the arrays; what says which they are is written by others, who do not.

    Raises:
        OSError: the disk did not take it.
    """
    path = directory / str(step)
    inside = list(path.rglob("*"))
    for file in (each for each in inside if each.is_file()):
        _sync(file, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    for folder in (*(each for each in inside if each.is_dir()), path, directory):
        with contextlib.suppress(OSError):  # not every file system does that for a folder
            _sync(folder, os.O_RDONLY)


def clean(directory: Path) -> None:
    """Delete what a killed process left behind: half-written and half-deleted folders."""
    for path in directory.iterdir():
        if path.name.endswith((_UNFINISHED, _DELETING)):
            shutil.rmtree(path, ignore_errors=True)


def check_writable(directory: Path) -> None:
    """Make a folder in a folder of checkpoints, and remove it.

    Where Orbax cannot make one, threads of it wait for it for minutes, and the process with them.

    Raises:
        OSError: it cannot be made.
    """
    probe = directory / f"probe{_UNFINISHED}"
    probe.mkdir(exist_ok=True)
    probe.rmdir()


def discard_unfinished(directory: Path, step: int) -> None:
    """Delete what a failed save left behind, so that a full disk gets its room back.

    Where the run directory was moved away, TensorStore made it anew, with nothing else in it.
    """
    shutil.rmtree(directory / f"{step}{_UNFINISHED}", ignore_errors=True)
    for made in (directory, directory.parent):
        with contextlib.suppress(OSError):  # it is not empty, as it should be
            made.rmdir()


def set_aside(directory: Path, step: int) -> Path:
    """Rename a checkpoint so that it is neither read nor overwritten, and return what it is now."""
    target = directory / f"{step}{_DAMAGED}"
    number = 1
    while target.exists():
        number += 1
        target = directory / f"{step}{_DAMAGED}-{number}"
    (directory / str(step)).rename(target)
    return target


def _sync(path: Path, flags: int) -> None:
    opened = os.open(path, flags)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _named_as_steps(directory: Path) -> Iterator[Path]:
    # "007" and "²" are no names of ours.
    return (each for each in directory.iterdir() if re.fullmatch(r"0|[1-9][0-9]*", each.name))
