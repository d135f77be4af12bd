"""Which operations make the targets of a link out of its sources, for given shapes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trainer_checkpoint.convert.operations import (
    Agree,
    Cast,
    Fuse,
    Operation,
    Reshape,
    Shape,
    Split,
    Stack,
    Transpose,
    Unstack,
)
from trainer_checkpoint.convert.plan import Spec
from trainer_checkpoint.convert.targets import Link


def operations(
    link: Link, sources: Sequence[Spec], targets: Sequence[Spec], cast: bool
) -> tuple[Operation, ...]:
    """Return the operations, in order.

    They are: unstack, transpose, fuse or split, reshape, stack, cast; the middle ones so work on
    one layer.

    Args:
        link: what goes together.
        sources, targets: for its names, in its order.
        cast: whether the dtypes may differ.

    Raises:
        ValueError: the shapes or dtypes do not fit.
    """
    made: list[Operation] = []
    shapes = [spec.shape for spec in sources]

    def add(operation: Operation) -> None:
        nonlocal shapes
        shapes = operation.shapes(shapes)
        made.append(operation)

    rule = link.rule
    wanted = [spec.shape for spec in targets]
    layer = [_layer(shape, link) for shape in wanted] if link.stacked else wanted
    if link.unstacked:
        layer = wanted[: len(wanted) // link.unstacked]
        add(Unstack(link.unstacked, link.axis))
    if rule.transpose:
        add(Transpose(rule.transpose))
    if rule.fuse:
        count = len(rule.fuse.parts)
        add(Fuse(rule.fuse.axis, tuple(_size(shape, rule.fuse.axis) for shape in shapes[:count])))
    if rule.split:
        add(Split(rule.split.axis, _sizes(shapes[0], rule.split.axis, layer)))
    if rule.reshape and shapes[: len(layer)] != layer:
        add(Reshape(tuple(shapes[: len(layer)]), tuple(layer)))
    if link.stacked:
        add(Stack(link.stacked, link.axis))
    _check(shapes, wanted)
    made += _casts(sources, targets, cast)
    return tuple(made)


def agreement(sources: Sequence[Spec], targets: Sequence[Spec], cast: bool) -> Agree:
    """Return the operation for arrays that hold the same values, or are paired one to one.

    A whole number may change its dtype where its value fits, as steps and counters do.

    Raises:
        ValueError: the shapes or dtypes do not fit.
    """
    made = Agree(tuple(each.dtype for each in sources), tuple(each.dtype for each in targets))
    _check(made.shapes([each.shape for each in sources]), [each.shape for each in targets])
    whole = all(
        each.shape == () and each.dtype.startswith(("int", "uint")) for each in [*sources, *targets]
    )
    if not whole:
        _casts(sources, targets, cast)
    return made


def _layer(shape: Shape, link: Link) -> Shape:
    return shape[: link.axis] + shape[link.axis + 1 :]


def _size(shape: Shape, axis: int) -> int:
    if not -len(shape) <= axis < len(shape):
        raise ValueError(f"{list(shape)} has no axis {axis}")
    return shape[axis]


def _sizes(shape: Shape, axis: int, parts: Sequence[Shape]) -> tuple[int, ...]:
    """Of the parts along the axis; they may be reshaped afterwards, so that elements count."""
    others = int(np.prod(shape, dtype=np.int64)) // max(1, _size(shape, axis))
    return tuple(int(np.prod(part, dtype=np.int64)) // max(1, others) for part in parts)


def _check(shapes: Sequence[Shape], wanted: Sequence[Shape]) -> None:
    for shape, want in zip(shapes, wanted, strict=True):
        if shape != want:
            raise ValueError(f"{list(shape)} is not {list(want)}")


def _casts(sources: Sequence[Spec], targets: Sequence[Spec], cast: bool) -> list[Operation]:
    before, after = ({each.dtype for each in specs} for specs in (sources, targets))
    if before == after and len(before) == 1:
        return []
    if len(before) > 1 or len(after) > 1:
        raise ValueError(f"the dtypes differ among themselves: {', '.join(sorted(before | after))}")
    if not cast:
        raise ValueError(
            f"{min(before)} is not {min(after)}; `cast = true` in the mapping converts it"
        )
    return [Cast(min(before), min(after))]
