"""What can be done to arrays on the way: each operation knows its shapes, and how to undo itself.

An operation takes a list of arrays and gives a list. Where both layers and parts are in a list,
all parts of the first layer come first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

import attrs
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

Shape: TypeAlias = tuple[int, ...]
Arrays: TypeAlias = Sequence[NDArray[Any]]


class Operation(Protocol):
    """A change of arrays that loses nothing."""

    def __str__(self) -> str: ...

    def shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        """Return the shapes of what `apply` gives.

        Raises:
            ValueError: arrays of such shapes cannot be changed so.
        """

    def apply(self, arrays: Arrays) -> list[NDArray[Any]]: ...

    def inverse(self) -> Operation: ...


@attrs.frozen
class Stack:
    """Every `count` equal arrays, one of each layer, become one with a new axis."""

    count: int
    axis: int

    def __str__(self) -> str:
        return f"stacked {self.count} layers"

    def shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        groups = self._groups(shapes)
        for group in groups:
            if len(set(group)) > 1:
                raise ValueError(f"the layers have different shapes: {sorted(set(group))}")
        return [(*each[0][: self.axis], self.count, *each[0][self.axis :]) for each in groups]

    def apply(self, arrays: Arrays) -> list[NDArray[Any]]:
        return [np.stack(group, self.axis) for group in self._groups(arrays)]

    def inverse(self) -> Operation:
        return Unstack(self.count, self.axis)

    def _groups(self, items: Sequence[Any]) -> list[Sequence[Any]]:
        parts = len(items) // self.count
        return [items[part::parts] for part in range(parts)]


@attrs.frozen
class Unstack:
    """An array gives one for each layer: the inverse of `Stack`."""

    count: int
    axis: int

    def __str__(self) -> str:
        return f"unstacked {self.count} layers"

    def shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        for shape in shapes:
            if len(shape) <= self.axis or shape[self.axis] != self.count:
                raise ValueError(f"it is not a stack of {self.count} layers on axis {self.axis}")
        each = [shape[: self.axis] + shape[self.axis + 1 :] for shape in shapes]
        return each * self.count

    def apply(self, arrays: Arrays) -> list[NDArray[Any]]:
        layers = range(self.count)
        return [np.take(array, layer, self.axis) for layer in layers for array in arrays]

    def inverse(self) -> Operation:
        return Stack(self.count, self.axis)


@attrs.frozen
class Transpose:
    """The axes in another order, as in `numpy.transpose`."""

    axes: tuple[int, ...]

    def __str__(self) -> str:
        return f"transposed {list(self.axes)}"

    def shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        for shape in shapes:
            if len(shape) != len(self.axes):
                raise ValueError(f"transpose = {list(self.axes)} needs {len(self.axes)} axes")
        return [tuple(shape[axis] for axis in self.axes) for shape in shapes]

    def apply(self, arrays: Arrays) -> list[NDArray[Any]]:
        return [np.transpose(array, self.axes) for array in arrays]

    def inverse(self) -> Operation:
        return Transpose(tuple(self.axes.index(axis) for axis in range(len(self.axes))))


@attrs.frozen
class Fuse:
    """Every so many arrays as there are sizes become one, joined along an axis."""

    axis: int
    sizes: tuple[int, ...]

    def __str__(self) -> str:
        return f"fused {len(self.sizes)} parts"

    def shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        return [self._fused(shapes[first : first + self._count]) for first in self._firsts(shapes)]

    def apply(self, arrays: Arrays) -> list[NDArray[Any]]:
        firsts = self._firsts(arrays)
        return [np.concatenate(arrays[at : at + self._count], self.axis) for at in firsts]

    def inverse(self) -> Operation:
        return Split(self.axis, self.sizes)

    @property
    def _count(self) -> int:
        return len(self.sizes)

    def _firsts(self, items: Sequence[Any]) -> range:
        return range(0, len(items), self._count)

    def _fused(self, parts: Sequence[Shape]) -> Shape:
        for shape in parts:
            _check_axis(shape, self.axis)
        if len({_without(shape, self.axis) for shape in parts}) > 1:
            raise ValueError(f"the parts differ in more than axis {self.axis}: {list(parts)}")
        return _with(parts[0], self.axis, sum(self.sizes))


@attrs.frozen
class Split:
    """An array gives one for each size, cut along an axis: the inverse of `Fuse`."""

    axis: int
    sizes: tuple[int, ...]

    def __str__(self) -> str:
        return f"split into {len(self.sizes)} parts"

    def shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        for shape in shapes:
            _check_axis(shape, self.axis)
            if shape[self.axis] != sum(self.sizes):
                raise ValueError(
                    f"axis {self.axis} has size {shape[self.axis]}, and the parts need "
                    f"{' + '.join(map(str, self.sizes))}"
                )
        return [_with(shape, self.axis, size) for shape in shapes for size in self.sizes]

    def apply(self, arrays: Arrays) -> list[NDArray[Any]]:
        ends = np.cumsum(self.sizes)[:-1]
        return [part for array in arrays for part in np.split(array, ends, self.axis)]

    def inverse(self) -> Operation:
        return Fuse(self.axis, self.sizes)


@attrs.frozen
class Reshape:
    """Other shapes for the same values in the same order; the shapes repeat, layer by layer."""

    before: tuple[Shape, ...]
    after: tuple[Shape, ...]

    def __str__(self) -> str:
        return "reshaped"

    def shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        for before, after in zip(self.before, self.after, strict=True):
            if np.prod(before, dtype=np.int64) != np.prod(after, dtype=np.int64):
                raise ValueError(f"{list(before)} cannot be reshaped to {list(after)}")
        return [self.after[index % len(self.after)] for index in range(len(shapes))]

    def apply(self, arrays: Arrays) -> list[NDArray[Any]]:
        repeat = len(self.after)
        return [array.reshape(self.after[index % repeat]) for index, array in enumerate(arrays)]

    def inverse(self) -> Operation:
        return Reshape(self.after, self.before)


@attrs.frozen
class Cast:
    """Another dtype. Casting back gives the same bits only where this one widened."""

    before: str
    after: str

    def __str__(self) -> str:
        return f"cast {self.before} to {self.after}"

    def shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        return list(shapes)

    def apply(self, arrays: Arrays) -> list[NDArray[Any]]:
        return [array.astype(jnp.dtype(self.after)) for array in arrays]

    def inverse(self) -> Operation:
        return Cast(self.after, self.before)


@attrs.frozen
class Agree:
    """Arrays that all hold the same values, as counters do: each of the new ones gets them.

    Attributes:
        before: the dtype of each array that is taken.
        after: the dtype of each that is given; a dtype that cannot hold the values is an error.
    """

    before: tuple[str, ...]
    after: tuple[str, ...]

    def __str__(self) -> str:
        return "taken" if len(self.before) == len(self.after) == 1 else "taken, where all agree"

    def shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        if len(set(shapes)) > 1:
            raise ValueError(f"they have different shapes: {sorted(set(shapes))}")
        return [shapes[0]] * len(self.after)

    def apply(self, arrays: Arrays) -> list[NDArray[Any]]:
        first = arrays[0]
        if not all(_equal(first, each) for each in arrays[1:]):
            raise ValueError(f"they differ: {', '.join(str(array) for array in arrays)}")
        cast = [first.astype(jnp.dtype(dtype)) for dtype in self.after]
        for array in cast:
            if not _equal(first, array):
                raise ValueError(f"{first} does not fit in {array.dtype}")
        return cast

    def inverse(self) -> Operation:
        return Agree(self.after, self.before)


def _equal(a: NDArray[Any], b: NDArray[Any]) -> bool:
    same_bits = a.dtype == b.dtype and a.tobytes() == b.tobytes()  # a NaN is not equal to itself
    return same_bits or np.array_equal(a, b)


def _check_axis(shape: Shape, axis: int) -> None:
    if not -len(shape) <= axis < len(shape):
        raise ValueError(f"{list(shape)} has no axis {axis}")


def _without(shape: Shape, axis: int) -> Shape:
    at = axis % len(shape)
    return shape[:at] + shape[at + 1 :]


def _with(shape: Shape, axis: int, size: int) -> Shape:
    at = axis % len(shape)
    return (*shape[:at], size, *shape[at + 1 :])
