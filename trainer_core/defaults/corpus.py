"""The text to train on: which files it is, in which order, as one array of bytes."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import stat
import sys
import sysconfig
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TypeAlias

import attrs
import numpy as np
from numpy.typing import NDArray

from trainer_core.errors import UserError

Bytes: TypeAlias = NDArray[np.uint8]
File: TypeAlias = tuple[str, Path]  # its name below the folder, by which it is ordered

LIBRARY = f"Python {sys.version_info.major}.{sys.version_info.minor} standard library"
NOT_OF_THE_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test"}
VOCABULARY = 256  # bytes are the tokens
REMEDY = "give a text file, a folder, or a glob (** stands for folders at any depth)"
SEPARATOR = b"\n"
SNIFFED = 8192  # bytes; a NUL among the first ones makes a file binary, as git and grep have it


@attrs.frozen(eq=False)
class Corpus:
    """Text in memory, or mapped into it.

    Attributes:
        name: what to call it.
        files: how many files it was read from.
        text: its bytes, [bytes] uint8.
    """

    name: str
    files: int
    text: Bytes


def path_problem(path: str | None) -> str | None:
    """Return why a path names no text, or None; reads no file and walks no folder.

    Args:
        path: as `read_corpus` takes it.
    """
    if path is None:
        return None
    if not path:
        return f"empty; {REMEDY}"
    here = _expanded(path)
    try:
        mode = here.stat().st_mode
    except (OSError, ValueError) as error:
        if not glob.has_magic(path):
            cause = getattr(error, "strerror", None) or error
            return f"{here.absolute()}: {cause}; {REMEDY}"
        if not any(map(os.path.isfile, glob.iglob(str(here), recursive=True))):
            return f"no file matches {here.absolute()}; {REMEDY}"
        return None
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return None
    return f"neither a file nor a folder; {REMEDY}"


def read_corpus(path: str | None) -> Corpus:
    """Read the text that a path names.

    One file is mapped into memory and keeps its order, whatever is in it. Several files are
    read once and joined by a newline, in the order of a hash of their names below the folder,
    so that any part of the whole is a random sample of files, the same one on every machine. Of
    a folder or a glob, hidden, binary and empty files are left out, and all but one of several
    files with the same content.

    Args:
        path: a file, a folder (with all below it) or a glob; None for the `.py` files of
            Python's own standard library, without its tests.

    Raises:
        UserError: nothing is there, nothing of it is text, or it cannot be read.
    """
    if problem := path_problem(path):
        raise wrong(path, problem)
    try:
        if path is not None and (file := _expanded(path)).is_file():
            return Corpus(path, 1, _mapped(file))
        return _joined(path)
    except OSError as error:
        cause = f"cannot read {error.filename}: {error.strerror}"
        raise wrong(path, f"{cause}; make it readable, or {REMEDY}") from error


def wrong(path: str | None, message: str) -> UserError:
    """Return the error that says what is wrong with `[data] path`."""
    if path is None:
        return UserError(
            f"[data] path is not given, so that {_library()} is read: {message}",
            "data.path",
            "data.length",
        )
    return UserError(
        f"[data] path = {json.dumps(path, ensure_ascii=False)}: {message}",
        "data.path",
        "data.length",
    )


def _joined(path: str | None) -> Corpus:
    files = sorted(_library_files() if path is None else _files(path), key=_rank)
    if not files:
        raise wrong(path, f"no file is there that is not hidden; {REMEDY}")
    texts = [file for _, file in files if not _is_binary(file)]
    if not texts:
        raise wrong(path, f"only binary files are there ({len(files)}); {REMEDY}")
    name = LIBRARY if path is None else path
    if len(texts) == 1:
        return Corpus(name, 1, _mapped(texts[0]))
    whole = bytearray()
    seen: set[bytes] = set()
    for file in texts:
        content = file.read_bytes()
        digest = hashlib.blake2b(content).digest()
        if content and digest not in seen:  # a copy would carry held-out text into training
            seen.add(digest)
            whole += (SEPARATOR if whole else b"") + content
    return Corpus(name, len(seen), np.frombuffer(memoryview(whole).toreadonly(), np.uint8))


def _library() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _library_files() -> Iterator[File]:
    for name, file in _below(_library(), NOT_OF_THE_LIBRARY):
        if file.suffix == ".py":
            yield name, file


def _files(path: str) -> Iterator[File]:
    here = _expanded(path)
    if here.is_dir():
        yield from _below(here)
        return
    parts = here.parts
    fixed = next(count for count, part in enumerate(parts) if glob.has_magic(part))
    root = Path(*parts[:fixed])
    for match in glob.iglob(str(here), recursive=True):
        if os.path.isfile(match):
            yield Path(match).relative_to(root).as_posix(), Path(match)


def _below(root: Path, skipped: Collection[str] = ()) -> Iterator[File]:
    for folder, folders, names in os.walk(root, onerror=_raise):
        folders[:] = [name for name in folders if name[0] != "." and name not in skipped]
        for name in names:
            file = Path(folder, name)
            if name[0] != "." and file.is_file():
                yield file.relative_to(root).as_posix(), file


def _rank(file: File) -> bytes:
    return hashlib.blake2b(os.fsencode(file[0])).digest()


def _is_binary(file: Path) -> bool:
    with file.open("rb") as opened:
        return b"\0" in opened.read(SNIFFED)


def _mapped(file: Path) -> Bytes:
    if file.stat().st_size == 0:  # which cannot be mapped
        return np.empty(0, np.uint8)
    return np.memmap(file, np.uint8, "r")


def _expanded(path: str) -> Path:
    return Path(os.path.expanduser(path))  # unlike Path.expanduser, leaves an unknown ~user


def _raise(error: OSError) -> None:
    raise error
