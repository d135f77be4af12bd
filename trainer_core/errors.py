"""The two ways a run can go wrong, each with the exit code that scripts rely on."""

from __future__ import annotations

import traceback
from collections.abc import Sequence


class TrainerError(Exception):
    """An error whose text is all that the person in front of the screen needs."""

    exit_code = 1
    is_told = False  # whether process 0 of the run says the same, so that this one need not


class UserError(TrainerError, ValueError):
    """A mistake in a config or on the command line: exit code 2, nothing was written.

    Args:
        message: what is wrong, and what would be right.
        *keys: the settings that it comes from, such as `data.batch_size`; where each got its
            value is added, once the config is at hand (`Config.placing`).
    """

    exit_code = 2

    def __init__(self, message: str, *keys: str) -> None:
        super().__init__(message)
        self.keys = keys


class RunError(TrainerError, RuntimeError):
    """A run that failed: exit code 1, what was saved is kept."""

    exit_code = 1


class SettingError(ValueError):
    """A value that a settings class refuses; the config adds the table, the file and the line.

    Args:
        key: the setting's name; that of another table is `table.key`.
        message: what is wrong and what would be right.
    """

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


def first_line(error: BaseException) -> str:
    """Return what was raised: its type, and the first line of what it says."""
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def with_place(error: BaseException) -> str:
    """Return what was raised, as `first_line` does, and the line of code that raised it."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{first_line(error)}, at {frame.filename}:{frame.lineno}, in {frame.name}"


def lines_of(said: str, causes: Sequence[str]) -> list[str]:
    """Return what is said of an error, after what became of other processes, if that is why."""
    return [*causes, f"so this process failed: {said}"] if causes else [said]


def kind_of(value: object) -> str:
    """Return what a value is, with its article: `a dict`, `an int`."""
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def listed(lines: Sequence[str], most: int = 20) -> str:
    """Return the first of some lines, each indented on a line of its own, and how many follow."""
    more = [f"… and {len(lines) - most} more"] if len(lines) > most else []
    return "".join(f"\n  {line}" for line in [*lines[:most], *more])
