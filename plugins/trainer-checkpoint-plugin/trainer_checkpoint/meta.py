"""What stands in a checkpoint beside the arrays: JSON that carries its own checksum."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

FORMAT = 1  # of the layout on disk; a reader refuses what is newer than itself
_CHECKSUM = "sha256"
_DISTRIBUTIONS = (
    "trainer-core",
    "trainer-checkpoint-plugin",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
)


class DamagedError(Exception):
    """A checkpoint that cannot be trusted; the text says which part of it, and why."""


def seal(value: Mapping[str, Any]) -> str:
    """Return the JSON text of a mapping, with a checksum over all of it."""
    plain = json.loads(json.dumps(value, default=str))
    return json.dumps(plain | {_CHECKSUM: _checksum(plain)}, indent=1)


def unseal(path: Path) -> dict[str, Any]:
    """Read back what `seal` made.

    Raises:
        DamagedError: the file is missing, no JSON, or not what was written.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        checksum = value.pop(_CHECKSUM)
    except FileNotFoundError:
        raise DamagedError(f"{path.parent.name}/{path.name} is missing") from None
    except (OSError, ValueError, AttributeError, KeyError) as error:
        raise DamagedError(f"{path.parent.name}/{path.name} cannot be read: {error}") from error
    if _checksum(value) != checksum:
        raise DamagedError(f"{path.parent.name}/{path.name} does not match its checksum")
    return dict(value)


def versions() -> dict[str, str]:
    """Return the installed version of everything on which a checkpoint may depend."""
    found = {"python": platform.python_version()}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def combined(leaves: Mapping[str, Mapping[str, Any]], part: str = "") -> str:
    """Return one digest for the leaves of a part of the state, or of all of it."""
    chosen = [
        f"{path} {leaf['shape']} {leaf['dtype']} {leaf['digest']}"
        for path, leaf in sorted(leaves.items())
        if path == part or path.startswith(f"{part}/" if part else "")
    ]
    return _hash(chosen)


def _checksum(value: Mapping[str, Any]) -> str:
    return _hash([json.dumps(value, sort_keys=True)])


def _hash(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
