"""What a Linen module tells of its arrays: axis names from boxes, roles from Flax's layers."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import attrs
from flax import linen as nn
from flax.linen.recurrent import DenseParams

from trainer_core.errors import UserError
from trainer_core.kinds import Kind
from trainer_core.module_infos import (
    Roles,
    Told,
    check_array,
    einsum_roles,
    module_info,
    times,
)
from trainer_core.types import Axis, ParamInfo
from trainer_linen.boxes import content, is_bridged, names_of, said

_NORMS = (nn.BatchNorm, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.InstanceNorm)
_STACKING = "layers stacked by nn.scan or nn.vmap need metadata_params={nn.PARTITION_NAME: ...}"
_SCANNED = (
    "Flax loses them when nn.scan or nn.vmap stacks it; unroll the layers, keep one framework "
    "inside the scan, or give the names by nnx.bridge.with_partitioning"
)


@attrs.frozen(eq=False)
class Origin:
    """An array as it was created, not yet stacked, and what the layer that did so tells of it."""

    leaf: Any
    kind: Kind
    roles: Roles


def array_info(path: str, leaf: Any, trained: bool, origin: Origin | None) -> ParamInfo:
    """Return what is known of one array of a module.

    Axis names are the raw logical names of its box. Kind and roles follow from the type of the
    Flax layer that created it, never from a name that a user chose; what `with_info` says goes
    before. Axes that `nn.scan` or `nn.vmap` added, wherever they put them, count equal arrays.

    Args:
        path: keys joined by `/`.
        leaf: the shape and dtype of the array, perhaps in a box.
        trained: whether it is in the collection `params`.
        origin: its creation; None where that is not known.

    Raises:
        UserError: an integer parameter, or a random key; a box that does not fit the array.
    """
    value = content(leaf)
    check_array(path, "a parameter" if trained else "a variable", value, trained, "a variable")
    origin = origin or Origin(leaf, *known(None, path, len(value.shape)))
    inner = content(origin.leaf)
    told = Told(
        kind=said(leaf, "kind") or origin.kind,
        roles=origin.roles if said(leaf, "roles") is None else said(leaf, "roles"),
        names=names_of(leaf),
        blocks=said(leaf, "blocks") or (),
    )
    if is_bridged(leaf) and told.names and len(inner.shape) < len(value.shape):
        raise UserError(f"{path} has the axis names {told.names} in an NNX module, and {_SCANNED}")
    info = module_info(path, value, told, _STACKING)
    if len(told.roles) == len(value.shape):
        return info
    stacked = _added(inner, value, names_of(origin.leaf), told.names)
    return info if stacked == tuple(range(len(stacked))) else _moved(info, stacked)


def _added(inner: Any, outer: Any, inner_names: Any, names: Any) -> tuple[int, ...]:
    """Return which axes of the whole array are not axes of the one that was created."""
    count = len(outer.shape) - len(inner.shape)
    axes = range(len(outer.shape))
    for added in combinations(axes, max(count, 0)):
        kept = [axis for axis in axes if axis not in added]
        same_shape = tuple(outer.shape[axis] for axis in kept) == tuple(inner.shape)
        same_names = not names or not inner_names or len(names) != len(outer.shape)
        if same_shape and (same_names or tuple(names[axis] for axis in kept) == inner_names):
            return added
    return ()


def _moved(info: ParamInfo, stacked: tuple[int, ...]) -> ParamInfo:
    """Give the role `stack` to the axes that were added, the others in order to the rest."""
    own = iter([axis.role for axis in info.axes][len(stacked) :])
    roles = ["stack" if axis in stacked else next(own) for axis in range(len(info.axes))]
    axes = tuple(Axis(axis.name, role) for axis, role in zip(info.axes, roles, strict=True))
    return attrs.evolve(info, axes=axes)


def known(owner: nn.Module | None, path: str, ndim: int) -> tuple[Kind, Roles]:
    """Return the kind of a Flax layer's array, and the roles of its last axes."""
    match owner, path.rpartition("/")[2]:
        case (nn.Dense() | DenseParams(), "kernel"):
            return "matrix", ("in", "out")
        case nn.DenseGeneral(), "kernel":
            ins, outs = _length(owner.axis), _length(owner.features)
            return "matrix", (*times("in", ins), *times("out", outs))
        case nn.DenseGeneral(), "bias":
            return "bias", times("out", _length(owner.features))
        case nn.Einsum(), "kernel" if owner.einsum_str:
            return "matrix", einsum_roles(owner.einsum_str)
        case nn.Embed(), "embedding":
            return "embedding", ("in", "out")
        case nn.ConvTranspose(), "kernel" if owner.transpose_kernel:
            return "conv", (*times("in", ndim - 2), "out", "in")
        case nn.Conv() | nn.ConvTranspose(), "kernel":
            return "conv", (*times("in", ndim - 2), "in", "out")
        case nn.Dense() | DenseParams() | nn.Conv() | nn.ConvTranspose(), "bias":
            return "bias", ("out",)
        case nn.Module(), "scale" if isinstance(owner, _NORMS):
            return "norm", ("other",)
        case nn.Module(), "bias" if isinstance(owner, _NORMS):
            return "bias", ("out",)
        case nn.PReLU(), "negative_slope":
            return "scalar", ()
    return "other", times("other", ndim)


def _length(sizes: Any) -> int:
    return 1 if isinstance(sizes, int) else len(sizes)
