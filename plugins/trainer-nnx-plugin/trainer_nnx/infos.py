"""What an NNX module tells of its arrays: axis names from Variables, roles from Flax's layers."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from trainer_core.kinds import Kind
from trainer_core.module_infos import (
    Roles,
    Told,
    check_array,
    einsum_roles,
    module_info,
    times,
)
from trainer_core.types import ParamInfo

_NORMS = (nnx.BatchNorm, nnx.LayerNorm, nnx.RMSNorm, nnx.GroupNorm, nnx.InstanceNorm)
_STACKING = "layers stacked by nnx.vmap need nnx.transform_metadata as well"


def param_info(path: str, leaf: Any, owner: nnx.Module | None) -> ParamInfo:
    """Return what is known of one array of a module.

    Axis names are the raw logical names of the Variable's `out_sharding`. Kind and roles follow
    from the type of the Flax layer that owns the array, never from a name that a user chose; a
    Variable's metadata `kind`, `roles` and `blocks` go before. Axes that vmap stacked in front
    count equal arrays.

    Args:
        path: keys joined by `/`.
        leaf: a Variable, or an array that is a plain attribute.
        owner: the module that has it as an attribute.

    Raises:
        UserError: a Variable that holds no single array; an integer Param; metadata that does
            not fit the array.
    """
    value, metadata = _value(path, leaf)
    kind, roles = known(owner, path.rpartition("/")[2], value.ndim)
    told = Told(
        kind=metadata.get("kind", kind),
        roles=metadata.get("roles", roles),
        names=metadata.get("out_sharding"),
        blocks=metadata.get("blocks", ()),
    )
    return module_info(path, value, told, _STACKING)


def _value(path: str, leaf: Any) -> tuple[jax.Array, dict[str, Any]]:
    if not isinstance(leaf, nnx.Variable):
        return jnp.asarray(leaf), {}
    value = leaf.get_value()
    if isinstance(value, (bool, int, float, complex)):
        value = jnp.asarray(value)
    what, trained = f"a {type(leaf).__name__}", isinstance(leaf, nnx.Param)
    check_array(path, what, value, trained, "another Variable")
    return value, leaf.get_metadata()


def known(owner: nnx.Module | None, name: str, ndim: int) -> tuple[Kind, Roles]:
    """Return the kind of a Flax layer's array, and the roles of its last axes."""
    match owner, name:
        case (nnx.Linear(), "kernel") | (nnx.LoRA(), "lora_a" | "lora_b"):
            return "matrix", ("in", "out")
        case nnx.LinearGeneral(), "kernel":
            ins, outs = len(owner.in_features), len(owner.out_features)
            return "matrix", (*times("in", ins), *times("out", outs))
        case nnx.LinearGeneral(), "bias":
            return "bias", times("out", len(owner.out_features))
        case nnx.Einsum(), "kernel":
            return "matrix", einsum_roles(owner.einsum_str)
        case nnx.Embed(), "embedding":
            return "embedding", ("in", "out")
        case nnx.Conv() | nnx.ConvTranspose(), "kernel":
            size = owner.kernel_size
            around = times("in", 1 if isinstance(size, int) else len(size))
            if isinstance(owner, nnx.ConvTranspose) and owner.transpose_kernel:
                return "conv", (*around, "out", "in")
            return "conv", (*around, "in", "out")
        case nnx.Linear() | nnx.Conv() | nnx.ConvTranspose(), "bias":
            return "bias", ("out",)
        case nnx.Module(), "scale" if isinstance(owner, _NORMS):
            return "norm", ("other",)
        case nnx.Module(), "bias" if isinstance(owner, _NORMS):
            return "bias", ("out",)
        case nnx.PReLU(), "negative_slope":
            return "scalar", ()
    return "other", times("other", ndim)
