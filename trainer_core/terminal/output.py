"""Write to stdout, whatever has become of it: a run must not end because nobody reads it."""

from __future__ import annotations

import os
import sys
from typing import Any, TextIO


class Stdout:
    """The stdout of now, which swallows text in silence once it is closed.

    A run whose terminal is gone, or whose reader has read enough, still has a state to save.
    """

    def __init__(self) -> None:
        self._stream: TextIO = sys.stdout

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except UnicodeEncodeError:
            encoding = self._stream.encoding
            self._stream.write(text.encode(encoding, "replace").decode(encoding))
        except (OSError, ValueError):
            _into_nothing()
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            _into_nothing()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def say(text: str) -> None:
    """Print a line, and see to it that it gets out now."""
    stdout = Stdout()
    stdout.write(f"{text}\n")
    stdout.flush()


def flush() -> None:
    """Write out what is buffered, on both streams."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            _into_nothing()


def keep_stdout() -> None:
    """Leave stdout to this program: what libraries print there in C++, as Gloo does, is moved.

    It goes to stderr, so that whoever reads JSON on stdout finds nothing else.
    """
    try:
        sys.stdout.flush()
        own = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding=sys.stdout.encoding)
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    except (OSError, ValueError, AttributeError):
        return  # one of the two is closed
    sys.stdout = sys.__stdout__ = own  # type: ignore[misc]


def is_terminal() -> bool:
    """Whether a person watches stdout, on something that can redraw."""
    try:
        return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    except ValueError:
        return False


def _into_nothing() -> None:
    # Otherwise the interpreter complains about what is still buffered when it exits.
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno())  # type: ignore[union-attr]
    except (OSError, ValueError, AttributeError):
        return
