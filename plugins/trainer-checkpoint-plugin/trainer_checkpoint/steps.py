"""The folders of a run's checkpoints: which steps there are, which may go, which are set aside.

Layout: `checkpoints/<step>` is a whole checkpoint; it appears by one rename, when all of it is
written. Every other name is something else, and is never read: a save that is under way
(`<step>.orbax-checkpoint-tmp`), a folder that is being deleted (`<step>.deleting`), or one that
could not be trusted (`<step>.damaged`).
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from trainer_checkpoint.meta import DamagedError, unseal

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
    # "007" and "²" are no names of ours.
    names = (path.name for path in directory.iterdir() if path.is_dir())
    return sorted(int(name) for name in names if re.fullmatch(r"0|[1-9][0-9]*", name))


def prune(directory: Path, keep: int, keep_every: int | None) -> None:
    """Delete old checkpoints.

    What is damaged or incomplete counts for nothing, and stays.

    Args:
        directory: the folder of checkpoints.
        keep: so many of the newest whose parameters are finite stay. One of the others does only
            while it is the newest of all: it shows what has become of the run.
        keep_every: those whose step is a multiple of it stay as well.
    """
    found = steps(directory)
    finite = 0
    for step in reversed(found):
        is_for_ever = keep_every is not None and step % keep_every == 0
        if is_for_ever and finite >= keep:
            continue  # not read: they may be many
        is_finite = _is_finite(directory, step)
        if is_finite and finite < keep:
            finite += 1
        elif is_finite is not None and not is_for_ever and (is_finite or step != found[-1]):
            _delete(directory / str(step))


def clean(directory: Path) -> None:
    """Delete what a killed process left behind: half-written and half-deleted folders."""
    for path in directory.iterdir():
        if path.name.endswith((_UNFINISHED, _DELETING)):
            shutil.rmtree(path, ignore_errors=True)


def discard_unfinished(directory: Path, step: int) -> None:
    """Delete what a failed save left behind, so that a full disk gets its room back."""
    shutil.rmtree(directory / f"{step}{_UNFINISHED}", ignore_errors=True)


def set_aside(directory: Path, step: int) -> None:
    """Rename a checkpoint so that it is neither read nor overwritten."""
    target = directory / f"{step}{_DAMAGED}"
    number = 1
    while target.exists():
        number += 1
        target = directory / f"{step}{_DAMAGED}-{number}"
    (directory / str(step)).rename(target)


def _is_finite(directory: Path, step: int) -> bool | None:
    """Whether the parameters of a step are finite; None where its own description is damaged."""
    path = directory / str(step)
    try:
        meta = unseal(path / META / META_FILE)
    except DamagedError:
        return None
    is_whole = (path / STATE).is_dir() and meta.get("step") == step
    return bool(meta.get("finite")) if is_whole else None


def _delete(path: Path) -> None:
    # Deleting many files takes time; a rename does not, so that a process that is killed here
    # leaves no half of a checkpoint under the name of a whole one.
    doomed = path.rename(path.with_name(path.name + _DELETING))
    shutil.rmtree(doomed, ignore_errors=True)
