"""What stands in a checkpoint beside the arrays: JSON that carries its own checksum."""

from __future__ import annotations

import hashlib
import json
import platform
import re
import stat
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from types import NoneType
from typing import Any

from trainer_checkpoint.steps import META, META_FILE
from trainer_core.errors import UserError
from trainer_core.files import parsed
from trainer_core.terminal.figures import size

FORMAT = 1  # of the layout on disk; a reader refuses what is newer than itself
MOST = 2**27  # bytes of a file beside the arrays: a description of half a million of them
_MOST = size(MOST)
_CHECKSUM = "sha256"
_KINDS = {
    "format": int,
    "step": int,
    "mark": str,
    "finite": bool,
    "config": dict,
    "versions": dict,
    "digest": str,
    "leaves": dict,
}
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
    """Return the JSON text of a mapping, with a checksum over all of it.

    Raises:
        ValueError: it is larger than `bounded` reads.
    """
    plain = json.loads(json.dumps(value, default=str))
    text = json.dumps(plain | {_CHECKSUM: _checksum(plain)}, indent=1)
    if len(text) > MOST:
        raise ValueError(
            f"what stands beside the arrays takes {size(len(text))}, more than {_MOST}"
        )
    return text


def bounded(path: Path, name: str) -> bytes:
    """Return what stands in a file beside the arrays, which may be a stranger's.

    Raises:
        DamagedError: it is no file, or larger than any that is written.
        OSError: it cannot be read.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise DamagedError(f"{name} is no file")
    if found.st_size > MOST:
        raise DamagedError(f"{name} has {size(found.st_size)}, and no such file more than {_MOST}")
    return path.read_bytes()


def unseal(path: Path) -> dict[str, Any]:
    """Read back what `seal` made.

    Raises:
        DamagedError: the file is missing, no JSON, or not what was written.
    """
    name = f"{path.parent.name}/{path.name}"
    try:
        value = parsed(bounded(path, name))
        checksum = value.pop(_CHECKSUM)
        is_whole = _checksum(value) == checksum
    except FileNotFoundError:
        raise DamagedError(f"{name} is missing") from None
    except (OSError, ValueError, KeyError, RecursionError) as error:
        raise DamagedError(f"{name} cannot be read: {error}") from error
    if not is_whole:
        raise DamagedError(f"{name} does not match its checksum")
    return value


def description(step: Path) -> dict[str, Any]:
    """Read what stands in the folder of a checkpoint beside its arrays.

    A seal says that it is as it was written, not that this plugin wrote it.

    Raises:
        DamagedError: it cannot be trusted.
        UserError: a newer version of this plugin wrote it.
    """
    meta = unseal(step / META / META_FILE)
    if type(meta.get("format")) is int and meta["format"] > FORMAT:
        raise UserError(
            f"{step} was written by a newer trainer-checkpoint-plugin, in format {meta['format']}; "
            f"this one reads up to format {FORMAT}: install a newer one"
        )
    wrong = [name for name, kind in _KINDS.items() if type(meta.get(name)) is not kind]
    if not wrong:
        tables, leaves = meta["config"].items(), meta["leaves"].items()
        wrong = [f"config/{name}" for name, table in tables if not isinstance(table, dict)]
        wrong += [] if re.fullmatch("[0-9a-f]+", meta["digest"]) else ["digest"]
        wrong += [f"leaves/{path}" for path, leaf in leaves if not _is_leaf(leaf)]
    if wrong:
        raise DamagedError(f"{META}/{META_FILE} is not as this plugin writes it: {wrong[0]}")
    return meta


def position(file: Path, meta: Mapping[str, Any]) -> dict[str, Any] | None:
    """Read where the data source of a process was; None for a pure one.

    Args:
        file: of the process.
        meta: what stands in the checkpoint beside its arrays.

    Raises:
        DamagedError: it cannot be trusted, or was saved with another checkpoint.
    """
    found, name = unseal(file), f"{file.parent.name}/{file.name}"
    place, step = found.get("position", ""), found.get("step")
    if not isinstance(place, (dict, NoneType)) or type(step) is not int:
        raise DamagedError(f"{name} holds no position")
    if step != meta["step"]:
        raise DamagedError(f"{name} is of step {step}")
    if found.get("mark") != meta["mark"]:
        raise DamagedError(f"{name} is of another save of step {step}")
    return place


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


def _is_leaf(leaf: Any) -> bool:
    return (
        isinstance(leaf, dict)
        and isinstance(leaf.get("shape"), list)
        and isinstance(leaf.get("dtype"), str)
        and isinstance(leaf.get("digest", 0), (str, NoneType))
    )


def _checksum(value: Mapping[str, Any]) -> str:
    return _hash([json.dumps(value, sort_keys=True)])


def _hash(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
