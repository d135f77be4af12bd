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

Files: TypeAlias = dict[str, Callable[[], str]]


def contents(
    run: Run, step: int, state: TrainState, position: dict[str, Any] | None
) -> tuple[dict[str, Any], Files, Files]:
    """Return the three items of a checkpoint: the arrays, what they are, the data's position.

    The last two are texts by file name, still to be made: the digests are being computed.

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
    header = {
        "format": FORMAT,
        "step": step,
        "config": dict(run.config),
        "skipped_in_a_row": skipped_in_a_row(state),
    }
    described = tree.described(leaves)
    meta = partial(_meta, header, described, begin_checks(arrays))
    data = partial(seal, {"position": position})
    return (
        tree.nested(arrays),
        {META_FILE: meta} if run.is_main else {},
        {data_file(run.process, run.processes): data},
    )


def _meta(
    header: Mapping[str, Any],
    leaves: Mapping[str, dict[str, Any]],
    wait: Callable[[], Mapping[tree.Path, Check]],
) -> str:
    checks = wait()
    by_name = {"/".join(path): check for path, check in checks.items()}
    for path, leaf in leaves.items():  # one of size zero has nothing to check
        leaf["digest"] = by_name[path].digest if path in by_name else None
    parts = sorted({path.split("/")[0] for path in leaves})
    parameters = [check for path, check in checks.items() if path[0] == "params"]
    return seal(
        {
            **header,
            "versions": versions(),
            "finite": all(check.is_finite for check in parameters),
            "digest": combined(leaves),
            "parts": {part: combined(leaves, part) for part in parts},
            "leaves": leaves,
        }
    )
