"""How a command ends badly: one message on stderr, and nothing that is known gets lost."""

from __future__ import annotations

import os
import sys
import threading
import traceback
from pathlib import Path

import attrs

from trainer_core.errors import TrainerError


@attrs.define
class Context:
    """What is known while a command runs, for the message if it fails.

    Attributes:
        directory: of the run, once it is known.
        began_training: whether there may be something to keep.
        wants_traceback: always print it.
    """

    directory: Path | None = None
    wants_traceback: bool = attrs.field(
        factory=lambda: os.environ.get("TRAINER_TRACEBACK", "0") not in ("", "0")
    )

    def must_leave_at_once(self, code: int) -> bool:
        """Whether the interpreter cannot be shut down in order."""
        if any(thread.name == "trainer-work" for thread in threading.enumerate()):
            return True
        return code != 0 and _is_one_of_several_processes()


def refused(error: TrainerError, context: Context) -> int:
    """Say what was wrong; the text of a TrainerError is all that a person needs."""
    if context.wants_traceback:
        traceback.print_exception(error)
    _say("error", str(error))
    return error.exit_code


def crashed(error: Exception, context: Context) -> int:
    """Name an exception that nobody made for a person, and whose hook raised it."""
    notes = [f"\n  {note}" for note in dict.fromkeys(getattr(error, "__notes__", ()))]
    text = f"{type(error).__name__}: {error}{''.join(notes)}"
    directory = context.directory
    if context.wants_traceback or directory is None or not directory.is_dir():
        traceback.print_exception(error)
    else:
        try:
            (directory / "error.log").write_text("".join(traceback.format_exception(error)))
            text += f"\n  the traceback is in {directory / 'error.log'}"
        except OSError:
            traceback.print_exception(error)
    _say("error", text)
    return 1


def interrupted(context: Context) -> int:
    """A stop before there was anything to keep."""
    del context
    print("stopped before training began; nothing was written")
    return 0


def _say(word: str, text: str) -> None:
    if not sys.stderr.isatty():
        print(f"{word}: {text}", file=sys.stderr)
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(Text(f"{word}: ", "bold red") + Text(text))


def _is_one_of_several_processes() -> bool:
    jax = sys.modules.get("jax")
    if jax is None:
        return False
    try:
        return bool(jax.process_count() > 1)
    except RuntimeError:
        return False
