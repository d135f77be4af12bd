"""An array of a parameter as a stack of equal matrices, and back."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import attrs
import jax
import jax.numpy as jnp

from trainer_core.types import ParamInfo

MeshAxes = tuple[str, ...]


@attrs.frozen
class View:
    """How one array is a stack of matrices: [parts, stack, rows, columns], rows <= columns.

    A stack axis that is spread over a mesh is cut into `parts` (one for each of its devices) and
    the rest, all parts in front: folding then moves nothing between devices, and matrices of
    several parameters can be put behind each other within each part.

    Attributes:
        shape: of the array.
        stack, ins, outs: its axes, by what they are to the matrix.
        parts: into how many parts each of the stack axes is cut.
        outs_are_rows: whether the matrix is (outs, ins) or (ins, outs).
    """

    shape: tuple[int, ...]
    stack: tuple[int, ...]
    ins: tuple[int, ...]
    outs: tuple[int, ...]
    parts: tuple[int, ...]
    outs_are_rows: bool

    @property
    def size_in(self) -> int:
        return math.prod(self.shape[axis] for axis in self.ins)

    @property
    def size_out(self) -> int:
        return math.prod(self.shape[axis] for axis in self.outs)

    @property
    def matrix(self) -> tuple[int, int]:
        sizes = (self.size_in, self.size_out)
        return sizes[::-1] if self.outs_are_rows else sizes

    @property
    def neurons(self) -> tuple[int, ...]:
        return one_a_neuron(self.shape, self.ins)

    @property
    def total(self) -> int:
        """How many matrices there are, all parts together."""
        return self.count * math.prod(self.parts)

    @property
    def count(self) -> int:
        """How many matrices each part of the stack holds."""
        return math.prod(self.shape[axis] for axis in self.stack) // math.prod(self.parts)

    def fold(self, x: jax.Array) -> jax.Array:
        """Return [parts, count, rows, columns] of an array.

        Its `ins` or its `outs` may also have size 1 throughout, as what is kept for each neuron.
        """
        cut, order = self._cut(x.shape)
        x = x.reshape(cut).transpose(order)
        sizes = [math.prod(x.shape[start:stop]) for start, stop in self._runs()]
        x = x.reshape(sizes)  # [parts, count, in, out]
        return jnp.matrix_transpose(x) if self.outs_are_rows else x

    def unfold(self, x: jax.Array, shape: Sequence[int] | None = None) -> jax.Array:
        """Return the array of [parts, count, rows, columns]: the inverse of `fold`."""
        shape = self.shape if shape is None else tuple(shape)
        cut, order = self._cut(shape)
        x = jnp.matrix_transpose(x) if self.outs_are_rows else x
        x = x.reshape([cut[axis] for axis in order])
        inverse = sorted(range(len(order)), key=order.__getitem__)
        return x.transpose(inverse).reshape(shape)

    def _cut(self, shape: Sequence[int]) -> tuple[list[int], list[int]]:
        """The shape with each stack axis in two, and the order that puts all parts in front."""
        cut: list[int] = []
        place: dict[int, int] = {}
        parts: list[int] = []
        for axis, size in enumerate(shape):
            if axis in self.stack:
                pieces = self.parts[self.stack.index(axis)]
                parts.append(len(cut))
                cut += [pieces, size // pieces]
            else:
                cut.append(size)
            place[axis] = len(cut) - 1
        rest = [place[axis] for axis in (*self.stack, *self.ins, *self.outs)]
        return cut, parts + rest

    def _runs(self) -> list[tuple[int, int]]:
        ends = [0]
        for axes in (self.stack, self.stack, self.ins, self.outs):
            ends.append(ends[-1] + len(axes))
        return list(itertools.pairwise(ends))


def one_a_neuron(shape: Sequence[int], ins: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of one number for each output: the `in` axes have size 1."""
    return tuple(1 if axis in ins else size for axis, size in enumerate(shape))


def view_of(
    info: ParamInfo,
    shape: tuple[int, ...],
    stacked: Sequence[str] = (),
    parts: Sequence[int] | None = None,
) -> View:
    """Return the view of a parameter, or of one block of it.

    Args:
        info: says which axes are summed over and which are produced.
        shape: of the array.
        stacked: logical names of `in` and `out` axes that count matrices here, such as heads.
        parts: devices along each axis of the array, for the stack axes; None: one.

    Raises:
        ValueError: an axis has no role, or there is nothing on one side.
    """
    by_role: dict[str, list[int]] = {"stack": [], "in": [], "out": [], "other": []}
    for index, axis in enumerate(info.axes):
        role = "stack" if axis.name in stacked and axis.name is not None else axis.role
        by_role[role].append(index)
    unclear = [f"{index} ({info.axes[index].name})" for index in by_role["other"]]
    if unclear:
        raise ValueError(f"its axis {', '.join(unclear)} is neither in, out nor stack")
    for side in ("in", "out"):
        if not by_role[side]:
            heads = f" beside per_head = {list(stacked)}" if stacked else ""
            raise ValueError(f"none of its axes is an {side!r} axis{heads}")
    size = {side: math.prod(shape[each] for each in by_role[side]) for side in ("in", "out")}
    name = {side: [info.axes[each].name or "" for each in by_role[side]] for side in ("in", "out")}
    # Squares lie by the names of their axes, not by where a mesh puts them: the arithmetic of a
    # matrix is then the same, to the bit, on every mesh.
    outs_are_rows = (size["out"], name["out"]) < (size["in"], name["in"])
    stack = tuple(by_role["stack"])
    return View(
        shape=tuple(shape),
        stack=stack,
        ins=tuple(by_role["in"]),
        outs=tuple(by_role["out"]),
        parts=tuple(1 if parts is None else parts[axis] for axis in stack),
        outs_are_rows=outs_are_rows,
    )
