"""One resolver from logical axis names to mesh axes, for parameters and activations alike."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import attrs
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from trainer_core.errors import UserError
from trainer_core.suggest import did_you_mean
from trainer_core.types import ParamInfo

MeshAxes = str | Sequence[str]
Rules = Mapping[str, MeshAxes]
_MESH, _RULES, _OVERRIDES = "shard.mesh", "shard.rules", "shard.overrides"


@attrs.frozen
class AxisRules:
    """Which mesh axes each logical axis is spread over.

    Attributes:
        mesh: the devices.
        rules: logical name to a mesh axis, or several; an empty string or list: not spread.
        overrides: rules of their own for some parameters, by path, `*` standing for anything.
        uneven: what becomes of a parameter's axis that its devices do not divide: "error", or
            "replicate", which leaves out those mesh axes that do not divide it.
        seen: the names by which activations were constrained, while the model was traced.
        left_whole: what "replicate" did: path to what it left out, in a few words.
    """

    mesh: Mesh
    rules: Rules
    overrides: Mapping[str, Rules] = MappingProxyType({})
    uneven: str = "error"
    seen: set[str] = attrs.field(init=False, factory=set)
    left_whole: dict[str, str] = attrs.field(init=False, factory=dict)

    def __attrs_post_init__(self) -> None:
        self._check("[shard] rules", self.rules, _RULES)
        for pattern, rules in self.overrides.items():
            self._check(f'[shard] overrides "{pattern}"', rules, _OVERRIDES)

    def param_sharding(self, info: ParamInfo) -> NamedSharding:
        """Return where a parameter lies.

        Raises:
            UserError: a logical axis without a rule, two overrides for its path, a mesh axis used
                twice, or a dimension that its devices do not divide; names the parameter.
        """
        rules = {**self.rules, **self._override(info)}
        entries: list[tuple[str, ...] | None] = []
        used: dict[str, str] = {}
        for axis, size in zip(info.axes, info.shape, strict=True):
            if axis.name is None:
                entries.append(None)
                continue
            if axis.name not in rules:
                raise UserError(
                    f"parameter {info.path}: its logical axis {axis.name!r} has no rule"
                    f"{did_you_mean(axis.name, rules)}; add [shard] rules = "
                    f'{{{axis.name} = "MESH AXIS"}}, or "" to keep it whole',
                    _RULES,
                )
            mesh_axes = tuple(
                each for each in _several(rules[axis.name]) if self.mesh.shape[each] > 1
            )
            mesh_axes = self._dividing(info, axis.name, size, mesh_axes)
            for each in mesh_axes:
                if each in used:
                    raise UserError(
                        f"parameter {info.path}: its axes {used[each]} and {axis.name} would both "
                        f"be spread over the mesh axis {each!r}; change one of [shard] rules",
                        _RULES,
                        _OVERRIDES,
                    )
                used[each] = axis.name
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
                may be of any size. So is one over which `shard_map` has divided it already.
        """
        manual = set(jax.sharding.get_abstract_mesh().manual_axes)  # of a shard_map around it
        entries = []
        taken = set(manual)
        self.seen.update(name for name in names if name is not None)
        for name, size in zip(names, x.shape, strict=True):
            fitting: tuple[str, ...] = ()
            for axis in self._mesh_axes(name) if name is not None else ():
                parts = math.prod(self.mesh.shape[each] for each in (*fitting, axis))
                if axis not in taken and size % parts == 0:
                    fitting = (*fitting, axis)
            taken |= set(fitting)
            entries.append(fitting or None)
        spec = PartitionSpec(*entries)
        where = spec if manual else NamedSharding(self.mesh, spec)
        pinned: jax.Array = jax.lax.with_sharding_constraint(x, where)
        return pinned

    def _mesh_axes(self, name: str) -> tuple[str, ...]:
        return _several(self.rules.get(name, ()))

    def _override(self, info: ParamInfo) -> Rules:
        fitting = [each for each in self.overrides if fnmatch.fnmatchcase(info.path, each)]
        if len(fitting) > 1:
            quoted = " and ".join(f'"{pattern}"' for pattern in fitting)
            raise UserError(
                f"parameter {info.path}: [shard] overrides {quoted} both fit it; keep one of them",
                _OVERRIDES,
            )
        return self.overrides[fitting[0]] if fitting else {}

    def _dividing(
        self, info: ParamInfo, name: str, size: int, mesh_axes: tuple[str, ...]
    ) -> tuple[str, ...]:
        parts = math.prod(self.mesh.shape[each] for each in mesh_axes)
        if size % parts == 0:
            return mesh_axes
        spread = f"{name} of {size} cannot be spread over {parts} devices ({' x '.join(mesh_axes)})"
        if self.uneven != "replicate":
            raise UserError(
                f"parameter {info.path}: its axis {spread}; change [shard] mesh, make it "
                f"{-(-size // parts) * parts} in the model, or keep it whole, with [shard] rules = "
                f'{{{name} = ""}} or, wherever devices do not divide, [shard] uneven = "replicate"',
                _MESH,
                _RULES,
            )
        kept: tuple[str, ...] = ()
        for axis in mesh_axes:
            if size % math.prod(self.mesh.shape[each] for each in (*kept, axis)) == 0:
                kept = (*kept, axis)
        self.left_whole[info.path] = spread
        return kept

    def _check(self, where: str, rules: Rules, key: str) -> None:
        for name, rule in rules.items():
            axes = _several(rule)
            if len(set(axes)) < len(axes):
                raise UserError(f"{where}: {name} = {list(axes)} names an axis twice", key)
            for axis in axes:
                if axis not in self.mesh.shape:
                    raise UserError(
                        f"{where}: {name} = {axis!r}: the mesh has no such axis"
                        f"{did_you_mean(axis, self.mesh.shape)}; it has: "
                        f"{', '.join(self.mesh.shape)}",
                        key,
                    )


def mesh_axes_of(spec: PartitionSpec, dimensions: int) -> tuple[tuple[str, ...], ...]:
    """Return the mesh axes of each dimension of a partition spec."""
    entries = [*spec, *[None] * (dimensions - len(spec))]
    return tuple(_several(each or ()) for each in entries)


def also_over(shape: Sequence[int], sharding: NamedSharding, axis: str) -> NamedSharding:
    """Spread the largest dimension that stays divisible over one more mesh axis.

    Args:
        shape: of the array.
        sharding: where it lies.
        axis: of its mesh; it returns `sharding` where that has one device, or is taken.
    """
    mesh = sharding.mesh
    taken = mesh_axes_of(sharding.spec, len(shape))
    if mesh.shape.get(axis, 1) == 1 or any(axis in names for names in taken):
        return sharding
    for index in sorted(range(len(shape)), key=lambda each: -shape[each]):
        parts = mesh.shape[axis] * math.prod(mesh.shape[name] for name in taken[index])
        if shape[index] % parts == 0:
            entries = [*taken[:index], (*taken[index], axis), *taken[index + 1 :]]
            return NamedSharding(mesh, PartitionSpec(*(each or None for each in entries)))
    return sharding


def _several(rule: MeshAxes) -> tuple[str, ...]:
    if isinstance(rule, str):
        return (rule,) if rule else ()
    return tuple(rule)


def _span(parts: set[tuple[int, int]]) -> range | None:
    """The rows of some parts, where they lie side by side."""
    begin, end = min(each[0] for each in parts), max(each[1] for each in parts)
    return range(begin, end) if sum(b - a for a, b in parts) == end - begin else None
