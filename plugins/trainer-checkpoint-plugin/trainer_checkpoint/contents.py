"""What a checkpoint is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import NoneType
from typing import TYPE_CHECKING, Any, TypeAlias

from trainer_checkpoint import tree
from trainer_checkpoint.digest import Check, begin_checks
from trainer_checkpoint.meta import FORMAT, combined, seal, versions
from trainer_checkpoint.steps import META_FILE, data_file
from trainer_core.defaults.step import skipped_in_a_row
from trainer_core.errors import UserError, kind_of

if TYPE_CHECKING:
    from trainer_core.run import Run
    from trainer_core.types import TrainState

FINITE = ("params", "buffers", "opt_state")  # parts that must be, for a checkpoint to be trusted
Files: TypeAlias = dict[str, Callable[[], str]]


def contents(
    run: Run, step: int, state: TrainState, position: dict[str, Any] | None, mark: str
) -> tuple[dict[str, Any], Files, Files]:
    """Return the three items of a checkpoint: the arrays, what they are, the data's position.

    The last two are texts by file name, still to be made: the digests are being computed. Each
    says the step and the mark: what is copied from another checkpoint is known.

    Args:
        mark: what all processes of a run have in common, and no other run.

    Raises:
        UserError: the position is none.
    """
    if not isinstance(position, (dict, NoneType)):
        raise UserError(
            f"[data]: state() gives {kind_of(position)}; expected a dict of what JSON can "
            f"say, or None",
            "data.use",
        )
    leaves = tree.by_path(state)
    arrays = tree.written(leaves)
    of_this_save = {"step": step, "mark": mark}
    header = {
        "format": FORMAT,
        **of_this_save,
        "config": dict(run.config),
        "skipped_in_a_row": skipped_in_a_row(state),
    }
    described = tree.described(leaves)
    infinite = {path for path, array in arrays.items() if may_be_infinite(path, array.shape)}
    meta = partial(_meta, header, described, begin_checks(arrays, infinite))
    data = partial(seal, {**of_this_save, "position": position})
    return (
        tree.nested(arrays),
        {META_FILE: meta} if run.is_main else {},
        {data_file(run.process, run.processes): data},
    )


def may_be_infinite(path: tree.Path, shape: tuple[int, ...]) -> bool:
    """Whether an infinity in a leaf may be meant: optax begins a least value so far with one.

    And a buffer may be a mask.
    """
    return path[0] == "buffers" or (path[0] == "opt_state" and not shape)


def _meta(
    header: Mapping[str, Any],
    leaves: Mapping[str, dict[str, Any]],
    wait: Callable[[], Mapping[tree.Path, Check]],
) -> str:
    by_name = {"/".join(path): check for path, check in wait().items()}
    is_finite = True
    for path, leaf in leaves.items():  # one of size zero has nothing to check
        check = by_name.get(path)
        leaf["digest"] = check.digest if check is not None else None
        if check is not None and not check.is_finite and path.split("/")[0] in FINITE:
            leaf["finite"] = is_finite = False
    parts = sorted({path.split("/")[0] for path in leaves})
    return seal(
        {
            **header,
            "versions": versions(),
            "finite": is_finite,
            "digest": combined(leaves),
            "parts": {part: combined(leaves, part) for part in parts},
            "leaves": leaves,
        }
    )
