"""One resolver from logical axis names to mesh axes, for parameters and activations alike."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from trainer_core.errors import UserError
from trainer_core.suggest import did_you_mean
from trainer_core.types import ParamInfo

Rules = Mapping[str, str | Sequence[str]]
_MESH, _RULES = "shard.mesh", "shard.rules"


def make_mesh(sizes: Mapping[str, int], devices: Sequence[jax.Device]) -> Mesh:
    """Return the mesh of a config.

    Its axes are spelled out as Auto: `jax.make_mesh` now makes Explicit ones, under which
    ordinary Flax models raise.

    Args:
        sizes: devices along each mesh axis, in order; one may be -1, for all that remain.
        devices: all devices of all processes.

    Raises:
        UserError: the sizes do not fit the number of devices.
    """
    written = "{" + ", ".join(f"{name} = {size}" for name, size in sizes.items()) + "}"
    where = f"[shard] mesh = {written}"
    free = [name for name, size in sizes.items() if size == -1]
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if len(free) > 1:
        raise UserError(f"{where}: only one axis may be -1, not {' and '.join(free)}", _MESH)
    if any(size < 1 and size != -1 for size in sizes.values()):
        raise UserError(
            f"{where}: each axis needs at least 1 device, or -1 for all that remain", _MESH
        )
    if len(devices) % fixed or (not free and fixed != len(devices)):
        raise UserError(
            f"{where} needs {'a multiple of ' if free else ''}{fixed} devices, "
            f"and there are {len(devices)} ({devices[0].platform}); "
            f"change the sizes, or leave one at -1",
            _MESH,
        )
    shape = tuple(len(devices) // fixed if size == -1 else size for size in sizes.values())
    names = tuple(sizes)
    return jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * len(names), devices=devices)


@attrs.frozen
class AxisRules:
    """Which mesh axes each logical axis is spread over.

    Attributes:
        mesh: the devices.
        rules: logical name to a mesh axis, or several; an empty string or list: not spread.
        seen: the names by which activations were constrained, while the model was traced.
    """

    mesh: Mesh
    rules: Rules
    seen: set[str] = attrs.field(init=False, factory=set)

    def __attrs_post_init__(self) -> None:
        for name in self.rules:
            for axis in self._mesh_axes(name):
                if axis not in self.mesh.shape:
                    raise UserError(
                        f"[shard] rules: {name} = {axis!r}: the mesh has no such axis"
                        f"{did_you_mean(axis, self.mesh.shape)}; it has: "
                        f"{', '.join(self.mesh.shape)}",
                        _RULES,
                    )

    def param_sharding(self, info: ParamInfo) -> NamedSharding:
        """Return where a parameter lies.

        Raises:
            UserError: a logical axis without a rule, a mesh axis used twice, or a dimension
                that its devices do not divide; names the parameter.
        """
        entries: list[tuple[str, ...] | None] = []
        used: dict[str, str] = {}
        for axis, size in zip(info.axes, info.shape, strict=True):
            if axis.name is None:
                entries.append(None)
                continue
            if axis.name not in self.rules:
                raise UserError(
                    f"parameter {info.path}: its logical axis {axis.name!r} has no rule"
                    f"{did_you_mean(axis.name, self.rules)}; add [shard] rules = "
                    f'{{{axis.name} = "MESH AXIS"}}, or "" to keep it whole',
                    _RULES,
                )
            mesh_axes = tuple(
                each for each in self._mesh_axes(axis.name) if self.mesh.shape[each] > 1
            )
            for each in mesh_axes:
                if each in used:
                    raise UserError(
                        f"parameter {info.path}: its axes {used[each]} and {axis.name} would both "
                        f"be spread over the mesh axis {each!r}; change one of [shard] rules",
                        _RULES,
                    )
                used[each] = axis.name
            parts = math.prod(self.mesh.shape[each] for each in mesh_axes)
            if size % parts:
                raise UserError(
                    f"parameter {info.path}: its axis {axis.name} of {size} cannot be spread over "
                    f"{parts} devices ({' x '.join(mesh_axes)}); change [shard] mesh, or keep it "
                    f'whole with [shard] rules = {{{axis.name} = ""}}',
                    _MESH,
                    _RULES,
                )
            entries.append(mesh_axes or None)
        return NamedSharding(self.mesh, PartitionSpec(*entries))

    def batch_sharding(self) -> NamedSharding:
        """Return where the first axis of a batch lies."""
        return NamedSharding(self.mesh, PartitionSpec(self._mesh_axes("batch") or None))

    def batch_parts(self) -> int:
        """Return over how many devices a batch is spread."""
        return math.prod(self.mesh.shape[axis] for axis in self._mesh_axes("batch"))

    def batch_rows(self, size: int, process: int) -> range:
        """Return the rows of a batch that lie on a process's devices.

        Where these are not one equal part of the batch, it is all of its rows. Processes whose
        devices hold the same rows, as those along a tensor axis, have the same answer.

        Args:
            size: rows of the global batch.
            process: the index of the process.
        """
        held: dict[int, set[tuple[int, int]]] = {}
        parts: Mapping[Any, Any] = self.batch_sharding().devices_indices_map((size,))
        for device, (part,) in parts.items():
            begin, end, _ = part.indices(size)
            held.setdefault(device.process_index, set()).add((begin, end))
        spans = {each: _span(parts) for each, parts in held.items()}
        own = spans[process]
        is_part = (
            None not in spans.values() and len({len(span or ()) for span in spans.values()}) == 1
        )
        return own if own and is_part and own.start % len(own) == 0 else range(size)

    def constrain(self, x: jax.Array, names: Sequence[str | None]) -> jax.Array:
        """Pin an activation to the mesh; without it, XLA may choose to gather the batch.

        Args:
            x: inside a traced function.
            names: a logical name for each axis. A mesh axis that an earlier dimension took, or
                that does not divide this one, is left out: unlike a parameter, an activation
                may be of any size.
        """
        entries = []
        taken: set[str] = set()
        self.seen.update(name for name in names if name is not None)
        for name, size in zip(names, x.shape, strict=True):
            fitting: tuple[str, ...] = ()
            for axis in self._mesh_axes(name) if name is not None else ():
                parts = math.prod(self.mesh.shape[each] for each in (*fitting, axis))
                if axis not in taken and size % parts == 0:
                    fitting = (*fitting, axis)
            taken |= set(fitting)
            entries.append(fitting or None)
        sharding = NamedSharding(self.mesh, PartitionSpec(*entries))
        pinned: jax.Array = jax.lax.with_sharding_constraint(x, sharding)
        return pinned

    def _mesh_axes(self, name: str) -> tuple[str, ...]:
        rule = self.rules.get(name, ())
        if isinstance(rule, str):
            return (rule,) if rule else ()
        return tuple(rule)


def _span(parts: set[tuple[int, int]]) -> range | None:
    """The rows of some parts, where they lie side by side."""
    begin, end = min(each[0] for each in parts), max(each[1] for each in parts)
    return range(begin, end) if sum(b - a for a, b in parts) == end - begin else None
