"""`trainer checkpoint list` and `verify`: which checkpoints a run has, and which can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import attrs

from trainer_checkpoint.digest import checks
from trainer_checkpoint.meta import DamagedError
from trainer_checkpoint.reader import positions, read_arrays, read_meta
from trainer_checkpoint.steps import DATA, META, META_FILE, STATE, steps
from trainer_checkpoint.stored import look
from trainer_core.errors import UserError
from trainer_core.terminal.figures import size
from trainer_core.terminal.page import Page


@attrs.frozen
class Found:
    """One folder of a run's checkpoints.

    Attributes:
        name: the step; or another name, which is never read.
        bytes: on disk.
        written: seconds since the epoch.
        digest: of its whole state; empty where it is not known.
        problem: why it cannot be trusted; empty where nothing was found.
    """

    name: str
    bytes: int
    written: float
    digest: str
    problem: str


def listed(path: Path) -> list[Found]:
    """Return what is in a run's folder of checkpoints: its steps, and what else lies there.

    Args:
        path: of a run, of its folder of checkpoints, or of one step.

    Raises:
        UserError: there is no checkpoint.
    """
    folders = _folders(path)
    found = [_found(each) for each in folders]
    if folders != [path.absolute()]:
        beside = {each for each in folders[0].parent.iterdir() if each.is_dir()} - {*folders}
        found += [_found(each, "never read: its name is no step's") for each in sorted(beside)]
    return [each for each in found if each is not None]


def verified(path: Path) -> list[Found]:
    """Return the steps of a run, or the one given, after reading every byte of them.

    Raises:
        UserError: there is no checkpoint.
    """
    found = [_found(each, read_arrays=True) for each in _folders(path)]
    return [each for each in found if each is not None]


def as_json(found: Sequence[Found]) -> list[dict[str, Any]]:
    """Return them as JSON values."""
    return [attrs.asdict(each) for each in found]


def print_out(found: Sequence[Found], good: str) -> None:
    """Print them as a table; `good` is said of those without a problem."""
    Page().table(
        ("step", "written", "on disk", "digest", "state"),
        [
            (
                each.name,
                f"{datetime.fromtimestamp(each.written):%Y-%m-%d %H:%M:%S}",
                size(each.bytes),
                each.digest[:12],
                each.problem or good,
            )
            for each in found
        ],
    )


def _folders(path: Path) -> list[Path]:
    absolute = path.absolute()
    if (absolute / META).is_dir() or (absolute / STATE).is_dir():
        return [absolute]  # one step, by whatever name
    for folder in (absolute / "checkpoints", absolute):
        if found := steps(folder):
            return [folder / str(step) for step in found]
    what = "holds no checkpoint of a run" if path.exists() else "does not exist"
    raise UserError(f"{path} {what}; give a run, or one step of it")


def _found(path: Path, problem: str = "", read_arrays: bool = False) -> Found | None:
    """Look at one folder; None where a run that is under way has removed it meanwhile."""
    try:
        meta, problem = _checked(path, read_arrays) if not problem else ({}, problem)
        found = Found(
            name=path.name,
            bytes=sum(each.stat().st_size for each in path.rglob("*") if each.is_file()),
            written=(path / META / META_FILE if meta else path).stat().st_mtime,
            digest=str(meta.get("digest", "")),
            problem=problem,
        )
    except FileNotFoundError:
        return None
    return found if path.exists() else None


def _checked(path: Path, read_arrays: bool) -> tuple[dict[str, Any], str]:
    number = path.name.partition(".")[0]
    try:
        meta = read_meta(path, int(number) if number.isdecimal() else None)
        positions(path / DATA, meta)
        return meta, _wrong_arrays(path, meta) if read_arrays else ""
    except (DamagedError, UserError) as error:
        return {}, str(error)


def _wrong_arrays(path: Path, meta: dict[str, Any]) -> str:
    import jax
    from jax.sharding import SingleDeviceSharding

    # Each keeps its width: a run of 64 bits is looked at by a command of 32.
    with jax.enable_x64(True):
        one = SingleDeviceSharding(jax.devices()[0])
        targets = {
            tuple(name.split("/")): jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=one)
            for name, leaf in look(path).leaves.items()
        }
        arrays = read_arrays(path / STATE, targets)  # as a run would: all that it needs is there
        found = {"/".join(name): check.digest for name, check in checks(arrays).items()}
    wanted = {name: leaf["digest"] for name, leaf in meta["leaves"].items() if leaf["digest"]}
    names = {*found, *wanted}
    wrong = sorted(name for name in names if found.get(name) != wanted.get(name))
    return f"not what was saved: {', '.join(wrong)}" if wrong else ""
