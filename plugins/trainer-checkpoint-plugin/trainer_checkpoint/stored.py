"""Any checkpoint that Orbax wrote, as arrays by path: ours, or of other code."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import orbax.checkpoint as ocp
from numpy.typing import NDArray

from trainer_checkpoint.inside import TREE, check_inside
from trainer_checkpoint.meta import DamagedError, description
from trainer_checkpoint.quiet import quiet_reading, reason
from trainer_checkpoint.steps import DATA, META, META_FILE, STATE, steps
from trainer_core.errors import UserError

_MARK = "_CHECKPOINT_METADATA"  # in the folder of a checkpoint, beside its parts
_WHOLE = (STATE, "default", "items")  # the names under which a whole tree is kept


@attrs.frozen
class Leaf:
    """One array on disk; `spec` says how it lay on the devices, where it lay on several."""

    shape: tuple[int, ...]
    dtype: str
    spec: str = ""

    @property
    def size(self) -> int:
        """Bytes."""
        return int(np.prod(self.shape, dtype=np.int64)) * _itemsize(self.dtype)


@attrs.frozen
class Stored:
    """A checkpoint on disk, of which only the description was read.

    Attributes:
        path: the folder of the step.
        items: the folders with the arrays in them, by the key above them; a checkpoint of one
            tree has one, under no key.
        leaves: by their keys joined by `/`.
        meta: what this plugin wrote beside them; None where other code wrote the checkpoint.
    """

    path: Path
    items: Mapping[str, Path]
    leaves: Mapping[str, Leaf]
    meta: Mapping[str, Any] | None


def look(path: Path) -> Stored:
    """Read the description of a checkpoint.

    Args:
        path: of a run (its newest step is meant), of a folder of checkpoints, or of one.

    Raises:
        UserError: there is no checkpoint, or it cannot be read.
    """
    folder = _step_folder(path.absolute())
    items = _items(folder)
    if not items:
        what = "holds no checkpoint that Orbax wrote" if path.exists() else "does not exist"
        raise UserError(f"{path} {what}; give a run, a folder of checkpoints, or one step of them")
    meta = None
    try:
        check_inside(folder, [*items.values(), folder / META, folder / DATA])
        if (folder / META / META_FILE).is_file():
            meta = description(folder)
    except DamagedError as error:
        raise UserError(f"{folder} is damaged: {error}") from error
    described = {key: _description(arrays) for key, arrays in items.items()}
    found = {"/".join(keys): _leaf(value) for keys, value in _flat(_whole(described))}
    return Stored(folder, items, found, meta)


def read(stored: Stored) -> dict[str, NDArray[Any]]:
    """Return the arrays, in the memory of this host.

    Raises:
        UserError: they cannot be read.
    """
    trees = {key: _restored(arrays) for key, arrays in stored.items.items()}
    return {"/".join(keys): np.asarray(value) for keys, value in _flat(_whole(trees))}


def filled(stored: Stored, arrays: Mapping[str, Any]) -> Any:
    """Return the containers of a checkpoint, empty ones too, with other arrays in them.

    Args:
        stored: whose lists and dicts they shall be.
        arrays: by path; where there is none, nothing is put.

    Raises:
        UserError: the description cannot be read.
    """
    described = {key: _description(folder) for key, folder in stored.items.items()}
    return _filled(_whole(described), arrays, ())


class _readable:
    """Whatever Orbax raises, a person wants to know which folder it was."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Exception):
            raise UserError(f"{self.folder} cannot be read: {reason(error)}") from error


def _step_folder(path: Path) -> Path:
    for folder in (path / "checkpoints", path):
        found = steps(folder)
        if found:
            return folder / str(found[-1])
    return path


def _items(folder: Path) -> dict[str, Path]:
    for whole in (folder, *(folder / name for name in _WHOLE)):
        if (whole / TREE).is_file():
            return {"": whole}
    # A CheckpointManager may keep parts under names of their own: `params`, `opt_state`. What has
    # a mark of its own is no part, but a checkpoint beside others.
    trees = [each.parent for each in sorted(folder.glob(f"*/{TREE}"))]
    return {each.name: each for each in trees if not (each / _MARK).exists()}


def _whole(items: Mapping[str, Any]) -> Any:
    return items.get("", items)


def _restored(arrays: Path) -> Any:
    import jax

    with _readable(arrays), quiet_reading():
        item = _description(arrays)
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
        return ocp.PyTreeCheckpointHandler().restore(
            arrays, args=ocp.args.PyTreeRestore(item=item, restore_args=as_numpy)
        )


def _description(arrays: Path) -> Any:
    with _readable(arrays), quiet_reading():
        found: Any = ocp.PyTreeCheckpointHandler().metadata(arrays)
    return getattr(found, "tree", found)


def _flat(tree: Any, keys: tuple[str, ...] = ()) -> Iterable[tuple[tuple[str, ...], Any]]:
    """Yield what is no container; a list's items have their index as key."""
    if isinstance(tree, Mapping):
        items: Iterable[tuple[Any, Any]] = tree.items()
    elif isinstance(tree, (list, tuple)):
        items = enumerate(tree)
    else:
        if tree is not None:
            yield keys, tree
        return
    for key, value in items:
        yield from _flat(value, (*keys, str(key)))


def _filled(tree: Any, arrays: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    if isinstance(tree, Mapping):
        return {key: _filled(each, arrays, (*keys, str(key))) for key, each in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [_filled(each, arrays, (*keys, str(at))) for at, each in enumerate(tree)]
    return arrays.get("/".join(keys))


def _leaf(value: Any) -> Leaf:
    spec = getattr(getattr(value, "sharding", None), "partition_spec", None) or ()
    shape = tuple(getattr(value, "shape", None) or ())
    text = ", ".join(_joined(each) if each else "-" for each in spec) if any(spec) else ""
    return Leaf(shape, str(getattr(value, "dtype", type(value).__name__)), text)


def _joined(axes: Any) -> str:
    return axes if isinstance(axes, str) else "+".join(map(str, axes))


def _itemsize(dtype: str) -> int:
    import jax.numpy as jnp

    try:
        return int(jnp.dtype(dtype).itemsize)
    except TypeError:
        return 0
