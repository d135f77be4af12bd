"""How a command ends badly: one message on stderr, and nothing that is known gets lost."""

from __future__ import annotations

import logging
import os
import sys
import sysconfig
import traceback
from pathlib import Path

import attrs

from trainer_core.errors import TrainerError

OUT_OF_MEMORY = (
    "what makes it fit: a smaller data.batch_size or data.length, accumulate.microbatches=N, "
    "model.remat=full, more devices under [shard] mesh"
)


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
    if not _is_told(error):
        say_error(str(error))
    return error.exit_code


def crashed(error: Exception, context: Context) -> int:
    """Name an exception that nobody made for a person, where it was raised, and by which hook."""
    said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    # JAX's note on its traceback, which begins with a rule, says nothing of the fault.
    notes = [note for note in getattr(error, "__notes__", ()) if not note.startswith("---")]
    lines = [said, *dict.fromkeys(notes)]
    if "out of memory" in said.lower():
        lines.append(OUT_OF_MEMORY)
    if context.wants_traceback:
        traceback.print_exception(error)
    elif _is_told(error):
        return 1
    elif written := _write_down(error, context.directory):
        lines.append(f"the traceback is in {written}; --traceback shows it here")
    else:
        lines.append(f"at {_innermost(error)}; --traceback shows how it came there")
    say_error("\n  ".join(lines))
    return 1


def _is_told(error: Exception) -> bool:
    """Whether process 0 of the run says the same; see `Group.tell`."""
    return bool(getattr(error, "is_told", False))


def _innermost(error: Exception) -> str:
    """Where the code of a person, not of an installed package, was when it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [each for each in frames if _is_own(Path(each.filename))]
    frame = (own or frames)[-1]
    return f"{frame.filename}:{frame.lineno}, in {frame.name}"


def _is_own(file: Path) -> bool:
    installed = "site-packages" in file.parts or "trainer_core" in file.parts
    standard = file.is_relative_to(sysconfig.get_paths()["stdlib"])
    return file.suffix == ".py" and not installed and not standard


def say_error(text: str) -> None:
    """Print `error: ...` on stderr."""
    _say("error: ", "bold red", text)


def show_warnings() -> None:
    """Print what is logged under `trainer_core`, by plugins too, as `warning: ...` on stderr."""
    logger = logging.getLogger("trainer_core")
    logger.addHandler(_Warnings(logging.WARNING))
    logger.propagate = False  # other handlers have a style of their own


class _Warnings(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        _say("warning: ", "bold yellow", record.getMessage())


def _say(label: str, style: str, text: str) -> None:
    if not sys.stderr.isatty():
        print(f"{label}{text}", file=sys.stderr)
        return
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True, highlight=False).print(Text.assemble((label, style), text))


def _write_down(error: Exception, directory: Path | None) -> Path | None:
    if directory is None or not directory.is_dir():
        return None
    distributed = sys.modules.get("trainer_core.distributed")
    process = distributed.place() if distributed is not None else 0
    path = directory / (f"error-{process}.log" if process else "error.log")
    try:
        path.write_text("".join(traceback.format_exception(error)))
    except OSError:
        return None
    return path
