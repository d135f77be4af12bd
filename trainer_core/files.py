"""Files of a run directory, which may come from somebody else: none is written through a link."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TextIO


def opened_anew(path: Path) -> TextIO:
    """Open a file to be written from its beginning; a link of that name is removed, not followed.

    Raises:
        OSError: it cannot be written.
    """
    path.unlink(missing_ok=True)
    return path.open("x", encoding="utf-8")


def replace(path: Path, text: str) -> None:
    """Write a file beside, and rename it: whoever is killed here loses nothing.

    Raises:
        OSError: it cannot be written.
    """
    beside = path.with_name(f"{path.name}.new")
    with opened_anew(beside) as file:
        file.write(text)
    os.replace(beside, path)
