"""For JAX code without the trainer: what each array of a plain tree is, by explicit rules."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from typing import Any, cast, get_args

import attrs
import jax
import numpy as np
from attrs.validators import instance_of
from jax.sharding import Mesh, NamedSharding

from trainer_core.axes import mesh_axes_of
from trainer_core.kinds import KINDS, Kind, Role
from trainer_core.types import Axis, ParamInfo
from trainer_muon.plan import Placement


@attrs.frozen
class Description:
    """What some arrays are.

    Attributes:
        axes: a name and a role for each axis: `"layers:stack embed:in heads:out head_dim:out"`;
            the roles are in, out, stack and other.
        kind: as in `trainer_core.ParamInfo`: matrix, embedding, norm, bias, ...
        blocks: the parts of a fused projection, name to size, along the `out` axes in order:
            `{"query": 512, "key": 128, "value": 128}`; each is a matrix of its own.
    """

    axes: str = attrs.field(validator=instance_of(str))
    kind: Kind = "matrix"
    blocks: Mapping[str, int] = attrs.field(factory=dict, converter=dict)


def describe(params: Any, rules: Mapping[str, Description]) -> Any:
    """Return a ParamInfo for each array, in the same tree.

    Args:
        params: any pytree of arrays, or of their shapes and dtypes.
        rules: path to description, `*` standing for anything: `"layers/*/query/kernel"`. A path
            is the keys, indices and attributes that lead to an array, joined by `/`.

    Raises:
        ValueError: a path that no rule fits, or two; a rule that fits no path; a description that
            does not fit the array. It names all of them.
    """
    problems: list[str] = []
    used: set[str] = set()

    def info(where: Any, leaf: Any) -> ParamInfo | None:
        path = path_of(where)
        fitting = [pattern for pattern in rules if fnmatch.fnmatchcase(path, pattern)]
        used.update(fitting)
        if len(fitting) != 1:
            which = " and ".join(f'"{pattern}"' for pattern in fitting) or "no rule"
            problems.append(f"{path} {list(leaf.shape)}: {which} fit it, expected one")
            return None
        try:
            return _info(path, leaf, rules[fitting[0]])
        except ValueError as error:
            problems.append(f'{path} {list(leaf.shape)}, by "{fitting[0]}": {error}')
            return None

    infos = jax.tree_util.tree_map_with_path(info, params)
    problems += [f'"{pattern}" fits no path' for pattern in rules if pattern not in used]
    if problems:
        raise ValueError("the rules do not describe the parameters:\n  " + "\n  ".join(problems))
    return infos


def placement_of(params: Any) -> tuple[Mesh, Placement]:
    """Return the mesh on which arrays lie, and the mesh axes of each axis of each, in their tree.

    Args:
        params: arrays, or shapes with shardings, all on one mesh.

    Raises:
        ValueError: an array lies on no mesh of devices, or on another than the first.
    """
    meshes: dict[Mesh, str] = {}

    def axes(where: Any, leaf: Any) -> tuple[tuple[str, ...], ...]:
        sharding = getattr(leaf, "sharding", None)
        if not isinstance(sharding, NamedSharding) or not isinstance(sharding.mesh, Mesh):
            raise ValueError(
                f"{path_of(where)} lies on no mesh of devices: its sharding is {sharding}; put "
                f"all arrays there by jax.device_put(params, NamedSharding(mesh, ...))"
            )
        meshes.setdefault(sharding.mesh, path_of(where))
        return mesh_axes_of(sharding.spec, len(leaf.shape))

    placement = jax.tree_util.tree_map_with_path(axes, params)
    if len(meshes) != 1:
        on = " and ".join(f"{path} on {mesh.shape}" for mesh, path in meshes.items()) or "no array"
        raise ValueError(f"expected one mesh, found {on}")
    return next(iter(meshes)), placement


def path_of(where: Any) -> str:
    """Return a path of jax's as text: keys, indices and attributes joined by `/`."""
    path: str = jax.tree_util.keystr(where, simple=True, separator="/")
    return path


def _info(path: str, leaf: Any, description: Description) -> ParamInfo:
    axes = []
    for text in description.axes.split():
        name, separator, role = text.rpartition(":")
        if not separator or role not in get_args(Role):
            raise ValueError(
                f"{text!r}: expected NAME:ROLE, such as embed:in; a role is one of "
                f"{', '.join(get_args(Role))}"
            )
        axes.append(Axis(name or None, cast(Role, role)))
    if len(axes) != len(leaf.shape):
        raise ValueError(f"{description.axes!r} has {len(axes)} axes")
    if description.kind not in KINDS:
        raise ValueError(f"kind {description.kind!r} is none of {', '.join(KINDS)}")
    return ParamInfo(
        path=path,
        shape=tuple(leaf.shape),
        dtype=np.dtype(leaf.dtype),
        axes=tuple(axes),
        kind=description.kind,
        blocks=tuple(description.blocks.items()),
    )
