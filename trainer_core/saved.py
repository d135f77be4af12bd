"""Which checkpoint of a run stood last, said beside them: it is known though they are gone."""

from __future__ import annotations

import json
from pathlib import Path

from trainer_core.errors import UserError
from trainer_core.files import parsed, replace

SAVED = "saved.json"  # in the run directory


def note_saved(directory: Path, step: int) -> None:
    """Note in a run directory that the checkpoint of a step stands under its name; not before.

    Raises:
        OSError: it cannot be written.
    """
    replace(directory / SAVED, json.dumps({"step": step}) + "\n")


def last_saved(directory: Path) -> int:
    """Return the step that was noted last; 0 where none was.

    Raises:
        UserError: the file cannot be read.
    """
    path = directory / SAVED
    try:
        step = parsed(path.read_bytes()).get("step")
        if type(step) is not int or step < 0:
            raise ValueError(f"its step is {step!r}")
    except FileNotFoundError:
        return 0
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read: {error}; it says which checkpoint the run had last: see that "
            f"they are all there, and delete it: the next one that is saved writes it anew"
        ) from error
    return step
