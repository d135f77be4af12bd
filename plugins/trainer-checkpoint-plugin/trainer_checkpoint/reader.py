"""Reads the newest checkpoint that can be trusted. Writes nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any, TypeVar

import attrs
import jax
import orbax.checkpoint as ocp

from trainer_checkpoint import tree
from trainer_checkpoint.digest import checks
from trainer_checkpoint.inside import check_inside
from trainer_checkpoint.meta import DamagedError, description, position
from trainer_checkpoint.mismatch import check_same
from trainer_checkpoint.quiet import quiet_reading, reason
from trainer_checkpoint.steps import DATA, META, STATE, data_file, steps
from trainer_core.errors import RunError, UserError
from trainer_core.types import TrainState

if TYPE_CHECKING:
    from trainer_core.run import Run

logger = logging.getLogger("trainer_core.checkpoint")
Read = TypeVar("Read")
_FEW = 3  # arrays; each takes Orbax a good part of a second to fail at


@attrs.frozen
class Checkpoint:
    """What was read of one step.

    Attributes:
        step: how many steps were made.
        state: on the devices, as `like` wants it.
        position: what this process's data source gave; None for a pure one.
    """

    step: int
    state: TrainState
    position: dict[str, Any] | None


def read_newest(run: Run, directory: Path, like: TrainState) -> Checkpoint | None:
    """Return the newest checkpoint that restores and verifies; None where there is none.

    Args:
        run: all of its processes try the same steps.
        directory: the folder of checkpoints.
        like: shapes, dtypes and shardings of the state.

    Raises:
        UserError: the checkpoint is of another model or optimizer, or other code wrote it.
        RunError: there are checkpoints, and none can be trusted.
    """
    directory = directory.absolute()  # Orbax accepts no other
    found = run.agree(steps(directory))
    numbers = f"steps {', '.join(map(str, found))}"
    have_meta = any((directory / str(step) / META).exists() for step in found)
    if found and not have_meta and not _is_of_ours(directory.parent):
        raise UserError(
            f"other code wrote what is in {directory} ({numbers}); `trainer convert {directory} "
            f"RECIPE.toml {run.settings.another}` makes a run of the newest"
        )
    for step in reversed(found):
        try:
            return _read(run, step, directory / str(step), like)
        except DamagedError as error:
            logger.warning("checkpoint %s is not used: %s", directory / str(step), error)
    if found:
        which = numbers if have_meta else f"{numbers}; none is complete: copy them again"
        anew = (
            f". To train from the start, start another run with {run.settings.another}, or move "
            f"that folder away"
        )
        raise RunError(
            f"no checkpoint in {directory} can be trusted ({which}); nothing was deleted"
            f"{'' if run.is_read else anew}"
        )
    return None


def _is_of_ours(directory: Path) -> bool:
    return any((directory / name).exists() for name in ("config.toml", "versions.json"))


def read_meta(path: Path, step: int | None) -> dict[str, Any]:
    """Return what stands in a checkpoint beside its arrays.

    Args:
        path: its folder.
        step: which it should be; None: any.

    Raises:
        DamagedError: it cannot be trusted.
        UserError: a newer version of this plugin wrote it.
    """
    check_inside(path, [path / part for part in (STATE, META, DATA)])
    meta = description(path)
    if step is not None and meta["step"] != step:
        raise DamagedError(f"it holds step {meta['step']}")
    if not meta["finite"]:
        leaves = meta["leaves"].items()
        named = [path for path, leaf in leaves if leaf.get("finite") is False]
        raise DamagedError(f"not finite: {shorten(', '.join(named), 300) or 'its parameters'}")
    return meta


def positions(folder: Path, meta: Mapping[str, Any]) -> list[dict[str, Any] | None]:
    """Return where the data source of each process was; None for a pure one.

    Args:
        folder: of these files.
        meta: what stands in the checkpoint beside its arrays.

    Raises:
        DamagedError: a file is missing, cannot be trusted, or was saved with another checkpoint.
    """
    files = sorted(folder.glob("process_*.json"))
    expected = sorted(data_file(process, len(files)) for process in range(len(files)))
    if not files or [file.name for file in files] != expected:
        raise DamagedError(f"files are missing in {folder.name}")
    return [position(file, meta) for file in files]


def _read(run: Run, step: int, path: Path, like: TrainState) -> Checkpoint:
    # Every part is read by all processes, or given up by all: each is a collective.
    meta, place = _together(run, lambda: _described(run, step, path, like))
    arrays = _together(run, lambda: read_arrays(path / STATE, tree.targets(tree.by_path(like))))
    _verify(arrays, meta["leaves"])  # of the whole arrays, so that all find the same
    return Checkpoint(step, tree.assembled(arrays, like), place)


def _together(run: Run, read: Callable[[], Read]) -> Read:
    """Return what this process reads.

    Raises:
        DamagedError: one of the processes cannot trust what it reads.
    """
    result: Read | None = None
    problem: DamagedError | None = None
    try:
        result = read()
    except DamagedError as error:
        problem = error
    others = run.gather(None if problem is None else str(problem))
    if problem is not None:
        raise problem
    for process, text in others.items():
        raise DamagedError(f"{text} (process {process})")
    assert result is not None
    return result


def _described(
    run: Run, step: int, path: Path, like: TrainState
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    meta = read_meta(path, step)
    wanted = tree.described(tree.by_path(like))
    check_same(meta["leaves"], wanted, str(path), meta["config"], run)
    return meta, _position(path / DATA, meta, run.process, run.processes)


def _position(
    folder: Path, meta: Mapping[str, Any], process: int, processes: int
) -> dict[str, Any] | None:
    own = folder / data_file(process, processes)
    if own.exists():
        return position(own, meta)
    found = positions(folder, meta)
    if any(each != found[0] for each in found):
        raise UserError(
            f"{folder} holds the positions of {len(found)} streams, one a process; "
            f"this run has {processes}, and cannot go on from there"
        )
    return found[0]


def read_arrays(
    path: Path, targets: Mapping[tree.Path, jax.ShapeDtypeStruct]
) -> dict[tree.Path, jax.Array]:
    """Return the arrays in a folder, as Orbax reads them, onto devices.

    Raises:
        DamagedError: one of them, or what Orbax needs beside them, cannot be read.
        RunError: they do not fit in memory.
    """
    try:
        return _restored(path, targets)
    except Exception as error:  # Orbax raises whatever went wrong, as far down as it did
        why = reason(error)
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in f"{error}{why}":
            raise RunError(f"{path.parent} does not fit in memory: {why}") from error
        which, why = _first_unreadable(path, targets) or ("its arrays", why)
        raise DamagedError(f"{which} cannot be read: {why}") from error


def _restored(
    path: Path, targets: Mapping[tree.Path, jax.ShapeDtypeStruct], **some: Any
) -> dict[tree.Path, jax.Array]:
    item = tree.nested(targets)
    shardings = jax.tree.map(lambda target: target.sharding, item)
    restore_args = ocp.checkpoint_utils.construct_restore_args(item, shardings)
    with quiet_reading():
        restored = ocp.PyTreeCheckpointHandler().restore(
            path, args=ocp.args.PyTreeRestore(item, restore_args=restore_args, **some)
        )
    return tree.flat(restored)


def _first_unreadable(
    path: Path, targets: Mapping[tree.Path, jax.ShapeDtypeStruct]
) -> tuple[str, str] | None:
    """Return the path of an array that cannot be read though another can, and why; or None.

    Where the first few cannot be, it is what all of them are found by.
    """
    readable, unreadable = 0, []
    for name, target in targets.items():
        try:
            _restored(path, {name: target}, transforms={})  # one of many
            readable += 1
        except Exception as error:
            unreadable.append(("/".join(name), reason(error)))
        if unreadable and readable:
            return unreadable[0]
        if len(unreadable) == _FEW:
            break
    return None


def _verify(arrays: Mapping[tree.Path, jax.Array], leaves: Mapping[str, Mapping[str, Any]]) -> None:
    found = {"/".join(path): check.digest for path, check in checks(arrays).items()}
    wrong = [path for path, digest in found.items() if digest != leaves[path]["digest"]]
    if wrong:
        raise DamagedError(f"not what was saved: {', '.join(wrong)}")
