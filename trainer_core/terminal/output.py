"""Write to stdout, whatever has become of it: a run must not end because nobody reads it."""

from __future__ import annotations

import os
import sys


def say(text: str) -> None:
    """Print a line; where stdout is closed, go on in silence.

    A run whose terminal is gone, or whose reader has read enough, still has a state to save.
    """
    try:
        print(text, flush=True)
    except OSError:
        _into_nothing()
    except ValueError:  # the file object itself is closed
        return


def flush() -> None:
    """Write out what is buffered, on both streams."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            _into_nothing()


def _into_nothing() -> None:
    # Otherwise the interpreter complains about what is still buffered when it exits.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
