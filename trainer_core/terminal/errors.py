"""What goes to stderr: errors, warnings and notes, each in one style."""

from __future__ import annotations

import logging
import sys
import warnings
from typing import TextIO

from trainer_core.deprecations import PluginDeprecation
from trainer_core.terminal.escaped import escaped


def say_error(text: str) -> None:
    """Print `error: ...` on stderr."""
    _say("error: ", "bold red", text)


def say_note(text: str) -> None:
    """Print `note: ...` on stderr, where stdout is for the answer alone."""
    _say("note: ", "yellow", text)


def show_warnings() -> None:
    """Print what is logged under `trainer_core`, by plugins too, as `warning: ...` on stderr.

    And in the same style that a plugin uses what is to go.
    """
    logger = logging.getLogger("trainer_core")
    logger.addHandler(_Warnings(logging.WARNING))
    logger.propagate = False  # other handlers have a style of their own
    as_python_does = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if issubclass(category, PluginDeprecation):
            _say("warning: ", "bold yellow", f"{message} ({filename}:{lineno})")
        else:
            as_python_does(message, category, filename, lineno, file, line)

    warnings.showwarning = show


class _Warnings(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        _say("warning: ", "bold yellow", record.getMessage())


def _say(label: str, style: str, text: str) -> None:
    text = escaped(text)
    if not sys.stderr.isatty():
        print(f"{label}{text}", file=sys.stderr)
        return
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True, highlight=False).print(Text.assemble((label, style), text))
