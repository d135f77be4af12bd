"""A checkpoint may come from somebody else: what leads out of its folder is not followed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from trainer_checkpoint.meta import DamagedError, bounded
from trainer_core.files import parsed

TREE = "_METADATA"  # Orbax's own description of a folder of arrays


def check_inside(folder: Path, parts: Iterable[Path]) -> None:
    """Refuse links, and names of arrays, that lead out of a checkpoint; and what is no file.

    The folder itself may be a link, as may be those above it: a person put it there.

    Args:
        folder: of the checkpoint.
        parts: its folders that are read.

    Raises:
        DamagedError: with the first that does.
    """
    root = folder.resolve()
    for part in parts:
        for path in _entries(part):
            if path.is_symlink() and not path.resolve().is_relative_to(root):
                raise DamagedError(
                    f"{path.relative_to(folder)} is a link that leads out of it, "
                    f"to {os.readlink(path)}"
                )
            if path.exists() and not (path.is_file() or path.is_dir()):  # a pipe is waited for
                raise DamagedError(f"{path.relative_to(folder)} is neither a file nor a folder")
        for name in _array_names(part / TREE, folder):
            # Where Orbax keeps each array in a folder of its own, that is called so.
            if not Path(os.path.normpath(root / name)).is_relative_to(root):
                raise DamagedError(
                    f"{(part / TREE).relative_to(folder)} names an array {name!r}, which leads "
                    f"out of it"
                )


def _entries(part: Path) -> Iterator[Path]:
    yield part
    for parent, folders, files in os.walk(part):  # follows no link
        for name in (*folders, *files):
            yield Path(parent, name)


def _array_names(description: Path, folder: Path) -> Iterator[str]:
    try:
        content = bounded(description, str(description.relative_to(folder)))
        entries = parsed(content)["tree_metadata"].values()
        keys = [[str(each["key"]) for each in entry["key_metadata"]] for entry in entries]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return  # it is none: whoever reads it next says so
    for each in keys:
        yield ".".join(each)
        yield "/".join(each)
