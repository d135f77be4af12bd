"""What installed packages register in entry points of `trainer.*`: metadata alone, read once.

importlib.metadata.entry_points() reads the entry points of every package again at each call, and
one malformed file of a foreign package ends it.
"""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import Distribution, distributions

import attrs

CORE = "trainer-core"
NO_PLUGINS = "TRAINER_NO_PLUGINS"  # set by `trainer --no-plugins`, and heard by its children


@attrs.frozen
class Package:
    """An installed distribution that registers something.

    Attributes:
        folder: where its metadata is; empty where that is not known.
    """

    name: str
    version: str
    folder: str

    def __str__(self) -> str:
        return f"{self.name} {self.version}".rstrip()


@attrs.frozen
class Entry:
    """One entry point: `name = package.module:Object`, as a package registers it in a group."""

    group: str
    name: str
    target: str
    package: Package


@attrs.frozen
class Installed:
    """All of it.

    Attributes:
        entries: each package once: that which Python finds first.
        hidden: packages that another of the same name hides, with that other one.
    """

    entries: tuple[Entry, ...]
    hidden: tuple[tuple[Package, Package], ...]


def registered(group: str) -> list[Entry]:
    """Return what installed packages register in a group; under `--no-plugins`, the core alone."""
    found = [entry for entry in everything().entries if entry.group == group]
    return [entry for entry in found if not core_alone() or entry.package.name == CORE]


def left_out(group: str, name: str) -> list[Entry]:
    """Return what has this name and would be registered but for `--no-plugins`."""
    shown = registered(group)
    entries = everything().entries
    return [
        each for each in entries if (each.group, each.name) == (group, name) and each not in shown
    ]


def core_alone() -> bool:
    """Whether only what trainer-core itself registers counts."""
    return os.environ.get(NO_PLUGINS, "0") not in ("", "0")


@contextmanager
def without_plugins() -> Iterator[None]:
    """Leave out what other packages than trainer-core register, in child processes too."""
    before = os.environ.get(NO_PLUGINS)
    os.environ[NO_PLUGINS] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[NO_PLUGINS]
        else:
            os.environ[NO_PLUGINS] = before


def everything() -> Installed:
    """Return what is installed now; it is read again only where a folder of sys.path changed."""
    return _read(tuple((folder, _changed(folder)) for folder in sys.path))


def normal(distribution: str) -> str:
    """Return the name of a distribution as packaging compares it."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def _changed(folder: str) -> int:
    try:
        return os.stat(folder or ".").st_mtime_ns
    except OSError:
        return 0


@functools.lru_cache(maxsize=2)
def _read(folders: tuple[tuple[str, int], ...]) -> Installed:
    entries: list[Entry] = []
    seen: dict[str, Package] = {}
    hidden: dict[Package, Package] = {}
    for distribution in distributions():
        text = _text(distribution, "entry_points.txt")
        if "[trainer." not in text:
            continue
        package = _package(distribution)
        first = seen.setdefault(normal(package.name), package)
        if first is package:
            entries += _entries(text, package)
        elif first != package:
            hidden[package] = first
    return Installed(tuple(entries), tuple(hidden.items()))


def _entries(text: str, package: Package) -> Iterator[Entry]:
    group = ""
    for line in map(str.strip, text.splitlines()):
        if line.startswith("[") and line.endswith("]"):
            group = line[1:-1].strip()
        elif line and line[0] not in "#;" and group.startswith("trainer."):
            # A line without "=" names nothing: it is listed, and broken.
            name, _, target = line.partition("=")
            yield Entry(group, name.strip(), target.partition("[")[0].strip(), package)


def _package(distribution: Distribution) -> Package:
    # The head alone: parsing a long description takes longer than all the rest.
    head = (_text(distribution, "METADATA") or _text(distribution, "PKG-INFO")).partition("\n\n")[0]
    known = dict(line.split(": ", 1) for line in head.splitlines() if ": " in line)
    folder = getattr(distribution, "_path", None)
    stem = getattr(folder, "stem", "?").partition("-")
    name, version = known.get("Name", stem[0]), known.get("Version", stem[2])
    return Package(name.strip(), version.strip(), str(folder or ""))


def _text(distribution: Distribution, name: str) -> str:
    try:
        return distribution.read_text(name) or ""
    except (OSError, UnicodeDecodeError):
        return ""
