"""Files of a run directory, which may come from somebody else: none is written through a link."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from textwrap import shorten
from typing import Any, TextIO


def opened_anew(path: Path) -> TextIO:
    """Open a file to be written from its beginning; a link of that name is removed, not followed.

    Raises:
        OSError: it cannot be written.
    """
    path.unlink(missing_ok=True)
    return path.open("x", encoding="utf-8")


def replace(path: Path, text: str) -> None:
    """Write a file beside, and rename it: a kill here loses nothing, and no power failure does.

    Raises:
        OSError: it cannot be written.
    """
    beside = path.with_name(f"{path.name}.new")
    try:
        with opened_anew(beside) as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())  # else the name may be on the disk before the content
        os.replace(beside, path)
    except OSError:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise


def parsed(text: bytes) -> dict[str, Any]:
    """Return an object of JSON.

    Raises:
        ValueError: it is none, or no UTF-8.
    """
    try:
        found = json.loads(text.decode("utf-8"))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(found, dict):
        raise ValueError(f"it is no object: {shorten(repr(found), 60)}")
    return found
