"""What the optimizer does with each parameter: to be explained, recorded, and held to."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs
import jax

from trainer_core.directory import OPTIMIZER
from trainer_core.errors import UserError, listed
from trainer_core.files import parsed
from trainer_core.suggest import did_you_mean
from trainer_core.types import ParamInfo

if TYPE_CHECKING:
    from trainer_core.run import Run

logger = logging.getLogger("trainer_core")


@attrs.frozen
class Row:
    """One parameter.

    Attributes:
        told: what the optimizer says of it: column to a number, a text, or a list of these for
            its blocks; `rule` names what updates it. Empty where it says nothing.
        state_bytes: what the optimizer keeps for it, on all devices together.
    """

    info: ParamInfo
    told: Mapping[str, Any]
    state_bytes: int


def optimizer_table(
    infos: Any, told: Mapping[str, Mapping[str, Any]] | None, opt_state: Any
) -> tuple[Row, ...]:
    """Return a row for each parameter.

    Args:
        infos: a tree of ParamInfo.
        told: what the optimizer tells of each path; None where it tells nothing.
        opt_state: its abstract state.

    Raises:
        UserError: it tells of paths that are not there, or leaves some out.
    """
    leaves = jax.tree.leaves(infos)
    known = {info.path for info in leaves}
    if told is not None and told.keys() != known:
        missing = sorted(known - told.keys())
        unknown = [f"{path}{did_you_mean(path, known)}" for path in sorted(told.keys() - known)]
        wrong = f"these are none:{listed(unknown)}" if unknown else f"it lacks:{listed(missing)}"
        raise UserError(
            f"describe_optimizer must tell of each parameter, and of nothing else; {wrong}",
            "optimizer.use",
        )
    sizes = _state_bytes(infos, opt_state)
    return tuple(Row(info, (told or {}).get(info.path, {}), sizes[info.path]) for info in leaves)


def as_json(table: Sequence[Row]) -> dict[str, Any]:
    """Return a table as JSON values, by path."""
    return {
        row.info.path: {
            "shape": list(row.info.shape),
            "kind": row.info.kind,
            **({"blocks": [name for name, _ in row.info.blocks]} if row.info.blocks else {}),
            **row.told,
            "state_bytes": row.state_bytes,
        }
        for row in table
    }


def check_recorded(table: Sequence[Row], run: Run) -> None:
    """Refuse to go on with checkpoints in which other rules kept another state.

    Raises:
        UserError: with the paths whose rule has changed; nothing was restored.
    """
    directory = run.directory
    if not any((directory / "checkpoints").glob("[0-9]*")):
        return
    try:
        rules = {
            path: told.get("rule")
            for path, told in parsed((directory / OPTIMIZER).read_bytes()).items()
        }
    except FileNotFoundError:
        return  # the checkpoints are still compared array by array
    except (OSError, ValueError, AttributeError) as error:
        if run.is_main:
            logger.warning(
                "%s cannot be read: %s; whether [optimizer] updates each parameter by the rule by "
                "which it did is not checked, only that the checkpoints have the same arrays. Put "
                "the file back for that; this run writes it anew",
                directory / OPTIMIZER,
                error,
            )
        return
    changes = []
    for row in table:
        old, new = rules.get(row.info.path), row.told.get("rule")
        if old is not None and new is not None and old != new:
            changes.append(f"{row.info.path} was {old}, is {new}")
    if changes:
        raise UserError(
            f"the checkpoints of {directory} hold the state of an optimizer that updates these "
            f"parameters by other rules:{listed(changes)}"
            f"\nset [optimizer] as it was, or begin anew what the optimizer keeps, in another "
            f"run: trainer convert {directory} RECIPE.toml run.name=NAME --fresh-optimizer",
            "optimizer.use",
        )


def _state_bytes(infos: Any, opt_state: Any) -> dict[str, int]:
    """Bytes of the state's leaves whose own path ends with that of a parameter."""
    by_path = {
        tuple(map(str, where)): info.path
        for where, info in jax.tree_util.tree_leaves_with_path(infos)
    }
    sizes = dict.fromkeys(by_path.values(), 0)
    for where, leaf in jax.tree_util.tree_leaves_with_path(opt_state):
        names = tuple(map(str, where))
        for start in range(len(names)):
            path = by_path.get(names[start:])
            if path is not None:
                sizes[path] += math.prod(leaf.shape) * leaf.dtype.itemsize
                break
    return sizes
