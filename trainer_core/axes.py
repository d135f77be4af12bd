"""One resolver from logical axis names to mesh axes, for parameters and activations alike."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import attrs
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from trainer_core.errors import UserError
from trainer_core.suggest import did_you_mean
from trainer_core.types import ParamInfo, Params

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
        others: the rule of a logical name that has none; None: it is an error.
        activations: the names by which activations were constrained while the model was traced,
            each with the mesh axes that it was really spread over.
    """

    mesh: Mesh
    rules: Rules
    overrides: Mapping[str, Rules] = MappingProxyType({})
    uneven: str = "error"
    others: MeshAxes | None = None
    activations: dict[str, set[str]] = attrs.field(init=False, factory=dict)

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
        entries: list[tuple[str, ...] | None] = []
        used: dict[str, str | None] = {}
        for name, size, wanted in self._wanted(info):
            mesh_axes = self._dividing(size, wanted)
            if mesh_axes != wanted and self.uneven != "replicate":
                parts = self._parts(wanted)
                raise UserError(
                    f"parameter {info.path}: its axis {self._spread(name, size, wanted)}; change "
                    f"[shard] mesh, make it {-(-size // parts) * parts} in the model, or keep it "
                    f'whole, with [shard] rules = {{{name} = ""}} or, wherever devices do not '
                    f'divide, [shard] uneven = "replicate"',
                    _MESH,
                    _RULES,
                )
            for each in mesh_axes:
                if each in used:
                    raise UserError(
                        f"parameter {info.path}: its axes {used[each]} and {name} would both be "
                        f"spread over the mesh axis {each!r}; change one of [shard] rules",
                        _RULES,
                        _OVERRIDES,
                    )
                used[each] = name
            entries.append(mesh_axes or None)
        return NamedSharding(self.mesh, PartitionSpec(*entries))

    def uneven_axes(self, info: ParamInfo) -> list[str]:
        """Return the axes of a parameter that `uneven` spreads less than their rules say."""
        return [
            self._spread(name, size, wanted)
            for name, size, wanted in self._wanted(info)
            if self._dividing(size, wanted) != wanted
        ]

    def replica_axes(self, params: Params) -> tuple[str, ...]:
        """Return the mesh axes that spread rows alone: their devices hold the same parameters.

        Args:
            params: a tree of ParamInfo.
        """
        spread = {
            axis
            for info in jax.tree.leaves(params)
            for axes in mesh_axes_of(self.param_sharding(info).spec, len(info.shape))
            for axis in axes
        }
        return tuple(
            axis
            for axis in self._mesh_axes("batch")
            if self.mesh.shape[axis] > 1 and axis not in spread
        )

    def batch_sharding(self) -> NamedSharding:
        """Return where the first axis of a batch lies."""
        return NamedSharding(self.mesh, PartitionSpec(self._mesh_axes("batch") or None))

    def batch_parts(self) -> int:
        """Return over how many devices a batch is spread."""
        return self._parts(self._mesh_axes("batch"))

    def batch_rows(self, size: int, process: int) -> range:
        """Return the rows of a batch that lie on a process's devices.

        Where these are not one equal part of the batch, or its devices do not divide it, it is all
        of its rows. Processes whose devices hold the same rows, as those along a tensor axis, have
        the same answer.

        Args:
            size: rows of the global batch.
            process: the index of the process.
        """
        if size % self.batch_parts():
            return range(size)
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

        Raises:
            UserError: a logical name without a rule.
        """
        manual = set(jax.sharding.get_abstract_mesh().manual_axes)  # of a shard_map around it
        entries: list[tuple[str, ...] | None] = []
        taken = set(manual)
        for name, size in zip(names, x.shape, strict=True):
            if name is None:
                entries.append(None)
                continue
            wanted = self._rule("an activation", name, self.rules)
            fitting = self._dividing(size, [axis for axis in wanted if axis not in taken])
            taken |= set(fitting)
            self.activations.setdefault(name, set()).update(fitting)
            entries.append(fitting or None)
        spec = PartitionSpec(*entries)
        where = spec if manual else NamedSharding(self.mesh, spec)
        pinned: jax.Array = jax.lax.with_sharding_constraint(x, where)
        return pinned

    def _mesh_axes(self, name: str) -> tuple[str, ...]:
        return _several(self.rules.get(name, ()))

    def _wanted(self, info: ParamInfo) -> Iterator[tuple[str | None, int, tuple[str, ...]]]:
        """Each axis of a parameter: its name, its size, and the mesh axes that rules give it."""
        rules = {**self.rules, **self._override(info)}
        for axis, size in zip(info.axes, info.shape, strict=True):
            mesh_axes: tuple[str, ...] = ()
            if axis.name is not None:
                mesh_axes = self._rule(f"parameter {info.path}", axis.name, rules)
            yield axis.name, size, tuple(each for each in mesh_axes if self.mesh.shape[each] > 1)

    def _rule(self, whose: str, name: str, rules: Rules) -> tuple[str, ...]:
        rule = rules.get(name, self.others)
        if rule is None:
            raise UserError(
                f"{whose}: its logical axis {name!r} has no rule{did_you_mean(name, rules)}; add "
                f'[shard] rules = {{{name} = "MESH AXIS"}}, or "" to keep it whole',
                _RULES,
            )
        return _several(rule)

    def _override(self, info: ParamInfo) -> Rules:
        fitting = [each for each in self.overrides if fnmatch.fnmatchcase(info.path, each)]
        if len(fitting) > 1:
            quoted = " and ".join(f'"{pattern}"' for pattern in fitting)
            raise UserError(
                f"parameter {info.path}: [shard] overrides {quoted} both fit it; keep one of them",
                _OVERRIDES,
            )
        return self.overrides[fitting[0]] if fitting else {}

    def _dividing(self, size: int, mesh_axes: Sequence[str]) -> tuple[str, ...]:
        """Those of some mesh axes, in turn, over which an axis of this size can be spread."""
        kept: tuple[str, ...] = ()
        for axis in mesh_axes:
            if size % self._parts((*kept, axis)) == 0:
                kept = (*kept, axis)
        return kept

    def _parts(self, mesh_axes: Iterable[str]) -> int:
        return math.prod(self.mesh.shape[each] for each in mesh_axes)

    def _spread(self, name: str | None, size: int, mesh_axes: Sequence[str]) -> str:
        axes = " x ".join(mesh_axes)
        return f"{name} of {size} cannot be spread over {self._parts(mesh_axes)} devices ({axes})"

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


def also_over(
    shape: Sequence[int], sharding: NamedSharding, mesh_axes: Iterable[str]
) -> NamedSharding:
    """Spread an array over more mesh axes: each over the largest dimension that it divides.

    Args:
        shape: of the array.
        sharding: where it lies.
        mesh_axes: of its mesh; those over which it lies already, or that divide no dimension, are
            left out.
    """
    mesh = sharding.mesh
    entries: list[tuple[str, ...]] = [*mesh_axes_of(sharding.spec, len(shape))]
    for axis in mesh_axes:
        if any(axis in taken for taken in entries):
            continue
        for index in sorted(range(len(shape)), key=lambda each: -shape[each]):
            spread = (*entries[index], axis)
            if shape[index] % math.prod(mesh.shape[each] for each in spread) == 0:
                entries[index] = spread
                break
    return NamedSharding(mesh, PartitionSpec(*(each or None for each in entries)))


def _several(rule: MeshAxes) -> tuple[str, ...]:
    if isinstance(rule, str):
        return (rule,) if rule else ()
    return tuple(rule)


def _span(parts: set[tuple[int, int]]) -> range | None:
    """The rows of some parts, where they lie side by side."""
    begin, end = min(each[0] for each in parts), max(each[1] for each in parts)
    return range(begin, end) if sum(b - a for a, b in parts) == end - begin else None
