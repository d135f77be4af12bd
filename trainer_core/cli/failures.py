"""How a command ends badly: one message on stderr, and nothing that is known gets lost."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

import attrs

from trainer_core.errors import TrainerError


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
    say_error(str(error))
    return error.exit_code


def crashed(error: Exception, context: Context) -> int:
    """Name an exception that nobody made for a person, and the hook that raised it."""
    said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    lines = [said, *dict.fromkeys(getattr(error, "__notes__", ()))]
    written = None if context.wants_traceback else _write_down(error, context.directory)
    if written is None:
        traceback.print_exception(error)
    else:
        lines.append(f"the traceback is in {written}; --traceback shows it here")
    say_error("\n  ".join(lines))
    return 1


def say_error(text: str) -> None:
    """Print `error: ...` on stderr."""
    if not sys.stderr.isatty():
        print(f"error: {text}", file=sys.stderr)
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, highlight=False)
    console.print(Text.assemble(("error: ", "bold red"), text))


def _write_down(error: Exception, directory: Path | None) -> Path | None:
    if directory is None or not directory.is_dir():
        return None
    path = directory / "error.log"
    try:
        path.write_text("".join(traceback.format_exception(error)))
    except OSError:
        return None
    return path
