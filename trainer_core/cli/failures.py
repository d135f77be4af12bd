"""How a command ends badly: one message on stderr, and nothing that is known gets lost."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from textwrap import shorten

import attrs

from trainer_core.errors import RunError, TrainerError, lines_of
from trainer_core.files import opened_anew
from trainer_core.imports import is_own
from trainer_core.terminal.errors import say_error

OUT_OF_MEMORY = (
    "what makes it fit: a smaller data.batch_size or data.length, accumulate.microbatches=N, "
    "model.remat=full, more devices under [shard] mesh"
)

_BRIEFLY = 90  # characters of what process 0 says in full


@attrs.define
class Context:
    """What is known while a command runs, for the message if it fails.

    Attributes:
        directory: that the command writes into, once it is known.
        wants_traceback: print it with every error.
    """

    directory: Path | None = None
    wants_traceback: bool = attrs.field(
        factory=lambda: os.environ.get("TRAINER_TRACEBACK", "0") not in ("", "0")
    )


def refused(error: TrainerError, context: Context) -> int:
    """Say what was wrong; the text of a TrainerError is all that a person needs."""
    if context.wants_traceback:
        traceback.print_exception(error)
    say_error(_briefly(str(error)) if _is_told(error) else str(error))
    return error.exit_code


def crashed(error: Exception, context: Context) -> int:
    """Name an exception that nobody made for a person, where it was raised, and by which hook."""
    said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    # JAX's note on its traceback, which begins with a rule, says nothing of the fault.
    notes = [note for note in getattr(error, "__notes__", ()) if not note.startswith("---")]
    # What became of another process; see `Group.tell`.
    cause = str(error.__cause__) if isinstance(error.__cause__, RunError) else ""
    lines = lines_of(said, [cause] if cause else [])
    lines += [note for note in dict.fromkeys(notes) if note not in cause]
    if "out of memory" in said.lower():
        lines.append(OUT_OF_MEMORY)
    if context.wants_traceback:
        traceback.print_exception(error)
    elif _is_told(error):
        lines = [_briefly(lines[0])]
    elif written := _write_down(error, context.directory):
        lines.append(f"the traceback is in {written}; --traceback shows it here")
    else:
        lines.append(f"at {_innermost(error)}; --traceback shows how it came there")
    say_error("\n  ".join(lines))
    return 1


def error_log(directory: Path, process: int) -> Path:
    """Return where a process writes the traceback of what it ended with."""
    return directory / (f"error-{process}.log" if process else "error.log")


def _is_told(error: Exception) -> bool:
    """Whether process 0 of the run says the same; see `Group.tell`."""
    return bool(getattr(error, "is_told", False))


def _briefly(said: str) -> str:
    """Who looks at this process alone shall know what it was, and where all of it is said."""
    first, *_ = said.split("\n")
    return f"process 0 says why: {shorten(first, _BRIEFLY, placeholder=' …')}"


def _innermost(error: Exception) -> str:
    """Where the code of a person, not of an installed package, was when it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [each for each in frames if is_own(Path(each.filename))]
    frame = (own or frames)[-1]
    return f"{frame.filename}:{frame.lineno}, in {frame.name}"


def _write_down(error: Exception, directory: Path | None) -> Path | None:
    if directory is None or not directory.is_dir():
        return None
    distributed = sys.modules.get("trainer_core.distributed")
    process = distributed.place() if distributed is not None else 0
    path = error_log(directory, process)
    try:
        with opened_anew(path) as file:
            file.write("".join(traceback.format_exception(error)))
    except OSError:
        return None
    return path
