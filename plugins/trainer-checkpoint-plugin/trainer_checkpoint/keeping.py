"""Which of a run's checkpoints stay."""

from __future__ import annotations

from pathlib import Path

from trainer_checkpoint.meta import DamagedError, description
from trainer_checkpoint.steps import STATE, delete, steps
from trainer_core.errors import UserError


def prune(directory: Path, keep: int, keep_every: int | None) -> None:
    """Delete old checkpoints.

    Sound are those that are finite, and whose last step was not skipped: of others it
    is not known whether any step after them will ever be finite. What is damaged or incomplete
    counts for nothing, and stays.

    Args:
        directory: the folder of checkpoints.
        keep: so many of the newest sound ones stay. Another stays only while it is the newest.
        keep_every: those whose step is a multiple of it stay as well.
    """
    found = steps(directory)
    kept = 0
    for step in reversed(found):
        is_for_ever = keep_every is not None and step % keep_every == 0
        if is_for_ever and kept >= keep:
            continue  # not read: they may be many
        is_sound = _is_sound(directory, step)
        if is_sound and kept < keep:
            kept += 1
        elif is_sound is not None and not is_for_ever and (is_sound or step != found[-1]):
            delete(directory, step)


def _is_sound(directory: Path, step: int) -> bool | None:
    """See `prune`; None where what says so is damaged or incomplete."""
    path = directory / str(step)
    try:
        meta = description(path)
    except (DamagedError, UserError):
        return None
    if not (path / STATE).is_dir() or meta["step"] != step:
        return None
    return meta["finite"] and not meta.get("skipped_in_a_row", 0)
