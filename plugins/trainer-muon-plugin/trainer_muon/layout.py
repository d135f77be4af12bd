"""Where the matrices of a group lie while they are orthogonalised: each whole, on one device."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout as RowMajor
from jax.experimental.layout import with_layout_constraint
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from trainer_muon.plan import Group
from trainer_muon.view import MeshAxes

Work = Callable[[tuple[jax.Array, ...]], tuple[jax.Array, ...]]


@attrs.frozen
class Layout:
    """How [parts, count, rows, columns] is spread while it is worked on.

    Attributes:
        mesh: the devices; None: there is one, or XLA decides.
        specs: of [parts, stack, rows, columns], from where the parameters lie to where each
            matrix is whole. From one to the next, one mesh axis moves: where two move at once,
            XLA gathers the whole array instead.
        devices: over how many the stack is spread in the end.
        rounds: how many times each device works.
        chunk: on how many matrices at once.
    """

    mesh: Mesh | None
    specs: tuple[PartitionSpec, ...]
    devices: int
    rounds: int
    chunk: int

    @property
    def slots(self) -> int:
        """How long the stack is; what exceeds the matrices is filled with zeros."""
        return self.devices * self.rounds * self.chunk


def layout_of(group: Group, count: int, mesh: Mesh | None, chunk: int) -> Layout:
    """Return the layout of a group.

    Args:
        group: what its matrices have in common.
        count: how many each part has.
        mesh: the devices.
        chunk: at most so many matrices are worked on at once on a device.
    """
    parts, rows, columns = group.over
    sizes: Mapping[str, int] = {} if mesh is None else mesh.shape
    moved: MeshAxes = ()
    specs = [_spec(parts, moved, rows, columns)]
    while rows or columns:
        if columns:
            columns, moved = columns[:-1], (*moved, columns[-1])
        else:
            rows, moved = rows[:-1], (*moved, rows[-1])
        specs.append(_spec(parts, moved, rows, columns))
    devices = math.prod(sizes[axis] for axis in moved)
    for axis, size in sizes.items():
        # Along the other axes the matrices are copies; to share them costs a gather in the end.
        free = size > 1 and axis not in (*parts, *moved)
        if free and _per_device(count, devices * size) < _per_device(count, devices):
            moved, devices = (*moved, axis), devices * size
            specs.append(_spec(parts, moved, (), ()))
    share = max(1, _per_device(count, devices))
    chunk = _fitting(share, chunk)
    return Layout(mesh, tuple(specs), devices, -(-share // chunk), chunk)


def _fitting(share: int, most: int) -> int:
    """The largest chunk that adds no more than an eighth of zeros to a device's share."""
    chunks = range(min(most, share), 0, -1)
    return next(chunk for chunk in chunks if 8 * (-share % chunk) <= share)


def worked_on(layout: Layout, arrays: tuple[jax.Array, ...], work: Work) -> tuple[jax.Array, ...]:
    """Return what `work` makes of matrices, spread over the devices as the layout says.

    Args:
        layout: of the group.
        arrays: each [parts, count, ...]; the first are the matrices.
        work: from arrays [..., rows, columns] to arrays of the same shapes, each matrix alone.
    """
    count = arrays[0].shape[1]
    locally = functools.partial(_on_one_device, layout, work)
    spread = tuple(_spread(layout, x) for x in arrays)
    if layout.mesh is None:
        done = locally(*spread)
    else:
        specs = (PartitionSpec(*layout.specs[-1][:2]),) * len(arrays)
        # None: inside `auto_axes` the mesh is another than the given one.
        mesh = None if AxisType.Explicit in layout.mesh.axis_types else layout.mesh
        done = jax.shard_map(locally, mesh=mesh, in_specs=specs, out_specs=specs)(*spread)
    return tuple(_gathered(layout, x, count) for x in done)


def _spread(layout: Layout, x: jax.Array) -> jax.Array:
    """Filled with zeros, and moved to where each matrix is whole: [parts, slots, ...]."""
    missing = layout.slots - x.shape[1]
    if missing:
        x = jnp.pad(x, ((0, 0), (0, missing), (0, 0), (0, 0)))
    for spec in layout.specs:
        x = _constrained(layout.mesh, x, spec)
    return x


def _gathered(layout: Layout, x: jax.Array, count: int) -> jax.Array:
    for spec in reversed(layout.specs):
        x = _constrained(layout.mesh, x, spec)
    return x[:, :count]


def _on_one_device(layout: Layout, work: Work, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    """A device's own matrices, a chunk at a time."""
    rounds = tuple(
        x.reshape(layout.rounds, *([layout.chunk] * (layout.chunk > 1)), *x.shape[-2:])
        for x in arrays
    )

    def one_round(index: Any, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        # In place, so that no more than a chunk is held twice.
        chosen = (jax.lax.dynamic_index_in_dim(x, index, 0, False) for x in carry)
        made = work(tuple(map(_row_by_row, chosen)))
        return tuple(
            jax.lax.dynamic_update_index_in_dim(x, y, index, 0)
            for x, y in zip(carry, made, strict=True)
        )

    done = jax.lax.fori_loop(0, layout.rounds, one_round, rounds)
    return tuple(x.reshape(each.shape) for x, each in zip(done, arrays, strict=True))


def _row_by_row(x: jax.Array) -> jax.Array:
    """XLA would keep a transposed matrix as it lies and add up in another order: the last bits of
    a matrix would depend on how many there are beside it."""
    pinned: jax.Array = with_layout_constraint(x, RowMajor(tuple(range(x.ndim))))
    return pinned


def _constrained(mesh: Mesh | None, x: jax.Array, spec: PartitionSpec) -> jax.Array:
    if mesh is None:
        return x
    fitting = PartitionSpec(
        *(None if size == 1 else axes for axes, size in zip(spec, x.shape, strict=False))
    )
    if AxisType.Explicit in mesh.axis_types:
        where: Any = fitting  # inside `auto_axes`, whose mesh is another than the given one
    else:
        where = NamedSharding(mesh, fitting)
    pinned: jax.Array = jax.lax.with_sharding_constraint(x, where)
    return pinned


def _spec(parts: MeshAxes, stack: MeshAxes, rows: MeshAxes, columns: MeshAxes) -> PartitionSpec:
    return PartitionSpec(*(axes or None for axes in (parts, stack, rows, columns)))


def _per_device(count: int, devices: int) -> int:
    return -(-count // devices)


def platform_of(mesh: Mesh | None) -> str:
    """Return what the devices are; without a mesh JAX's default ones."""
    platform: str = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
    return platform


def chunk_of(matrix: Sequence[int], at_once: int | None, bytes_at_once: int, platform: str) -> int:
    """Return how many matrices a device works on at once.

    Args:
        matrix: (rows, columns).
        at_once: as set; None: one on a CPU, whose products of a batch are slower than one after
            the other; elsewhere as many as the bytes hold.
        bytes_at_once: of them, in float32.
        platform: what the devices are.
    """
    if at_once is not None:
        return at_once
    if platform == "cpu":
        return 1
    return max(1, bytes_at_once // (4 * math.prod(matrix)))
