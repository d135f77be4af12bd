"""Where each array of a program lies: its axes, its bytes, and how many devices hold the same."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import attrs
import jax
from jax.sharding import NamedSharding

from trainer_core.axes import mesh_axes_of

if TYPE_CHECKING:
    from trainer_core.program import Program


@attrs.frozen
class Placed:
    """One array.

    Attributes:
        part: of the program: parameters, buffers, optimizer, step or batch.
        path: within it.
        axes: the logical name of each axis; None where nobody named it.
        spec: the mesh axes that each axis is spread over.
        bytes: of the whole array.
        bytes_on_device: of what one device holds.
        copies: how many devices hold the same.
        uneven: its axes that `[shard] uneven = "replicate"` spreads over fewer devices than
            their rules say.
    """

    part: str
    path: str
    shape: tuple[int, ...]
    dtype: str
    axes: tuple[str | None, ...]
    spec: tuple[tuple[str, ...], ...]
    bytes: int
    bytes_on_device: int
    copies: int
    uneven: tuple[str, ...] = ()


def sharding_table(program: Program) -> list[Placed]:
    """Return where every array of the state, and of a batch, lies."""
    state, model = program.abstract_state, program.model
    parts: dict[str, Any] = {
        "parameters": state.params,
        "buffers": state.buffers,
        "optimizer": state.opt_state,
        "step": {"step": state.step, "key": state.key, "extra": state.extra},
        "batch": program.abstract_batch,
    }
    named = {
        info.path: info
        for infos in (model.params, model.buffers)
        for info in jax.tree.leaves(infos)
    }
    rows = []
    for part, path, leaf in _leaves(parts):
        # What the optimizer keeps for a parameter ends with its path; factors have another shape.
        keys = path.split("/")
        ends = ("/".join(keys[start:]) for start in range(len(keys)))
        info = next((named[end] for end in ends if end in named), None)
        if info is None or info.shape != tuple(leaf.shape):
            axes: tuple[str | None, ...] = (None,) * len(leaf.shape)
        else:
            axes = tuple(axis.name for axis in info.axes)
        uneven = program.run.axes.uneven_axes(info) if info and info.path == path else ()
        rows.append(_placed(part, path, leaf, axes, tuple(uneven)))
    return rows


def _leaves(parts: dict[str, Any]) -> Iterator[tuple[str, str, Any]]:
    for part, tree in parts.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            yield part, jax.tree_util.keystr(path, simple=True, separator="/"), leaf


def _placed(
    part: str, path: str, leaf: Any, axes: tuple[str | None, ...], uneven: tuple[str, ...]
) -> Placed:
    sharding: NamedSharding = leaf.sharding
    held = math.prod(sharding.shard_shape(leaf.shape))
    size = math.prod(leaf.shape)
    spec = mesh_axes_of(sharding.spec, len(leaf.shape))
    over = math.prod(sharding.mesh.shape[axis] for each in spec for axis in each)
    return Placed(
        part=part,
        path=path,
        shape=tuple(leaf.shape),
        dtype=str(leaf.dtype),
        axes=axes,
        spec=spec,
        bytes=size * leaf.dtype.itemsize,
        bytes_on_device=held * leaf.dtype.itemsize,
        copies=sharding.mesh.size // over,
        uneven=uneven,
    )
