"""What an NNX module tells of its arrays: axis names from Variables, roles from Flax's layers."""

from __future__ import annotations

from typing import Any, get_args

import jax
import jax.numpy as jnp
from flax import nnx

from trainer_core.errors import UserError
from trainer_core.types import Axis, Kind, ParamInfo, Role

Roles = tuple[Role, ...]
_NORMS = (nnx.BatchNorm, nnx.LayerNorm, nnx.RMSNorm, nnx.GroupNorm, nnx.InstanceNorm)


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
    kind, roles = _known(owner, path.rpartition("/")[2], value.ndim)
    kind, roles = metadata.get("kind", kind), tuple(metadata.get("roles", roles))
    stacked = value.ndim - len(roles)
    if kind not in get_args(Kind):
        raise UserError(f"{path}: kind={kind!r} is none of {', '.join(get_args(Kind))}")
    if stacked < 0 or not set(roles) <= set(get_args(Role)):
        raise UserError(
            f"{path}: roles={roles} do not fit an array of shape {value.shape}; give one of "
            f"{', '.join(get_args(Role))} for each of its axes"
        )
    names = _names(path, metadata.get("out_sharding"), value)
    all_roles: Roles = (*_times("stack", stacked), *roles)
    return ParamInfo(
        path=path,
        shape=value.shape,
        dtype=value.dtype,
        axes=tuple(Axis(name, role) for name, role in zip(names, all_roles, strict=True)),
        kind=kind,
        blocks=tuple(metadata.get("blocks", ())),
    )


def _value(path: str, leaf: Any) -> tuple[jax.Array, dict[str, Any]]:
    if not isinstance(leaf, nnx.Variable):
        return jnp.asarray(leaf), {}
    value = leaf.get_value()
    what = f"{path}, a {type(leaf).__name__},"
    if isinstance(value, (bool, int, float, complex)):
        value = jnp.asarray(value)
    if not hasattr(value, "dtype"):
        raise UserError(f"{what} holds a {type(value).__name__}; hold one array in each Variable")
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        raise UserError(f"{what} holds a random key; keep nnx.Rngs instead, they are seeded anew")
    if isinstance(leaf, nnx.Param) and not jnp.issubdtype(value.dtype, jnp.inexact):
        raise UserError(f"{what} is {value.dtype} and has no gradient; make it another Variable")
    return value, leaf.get_metadata()


def _names(path: str, sharding: Any, value: jax.Array) -> tuple[str | None, ...]:
    names = getattr(sharding, "spec", sharding)
    if names is None:
        return (None,) * value.ndim
    names = tuple(names)
    if len(names) != value.ndim:
        raise UserError(
            f"{path} has shape {value.shape} and the axis names {names}; give one name for each "
            f"axis (layers stacked by nnx.vmap need nnx.transform_metadata as well)"
        )
    if not all(name is None or isinstance(name, str) for name in names):
        raise UserError(f"{path} has the axis names {names}; give one logical name for each axis")
    return names


def _known(owner: nnx.Module | None, name: str, ndim: int) -> tuple[Kind, Roles]:
    """Return the kind of a Flax layer's array, and the roles of its last axes."""
    match owner, name:
        case (nnx.Linear(), "kernel") | (nnx.LoRA(), "lora_a" | "lora_b"):
            return "matrix", ("in", "out")
        case nnx.LinearGeneral(), "kernel":
            ins, outs = len(owner.in_features), len(owner.out_features)
            return "matrix", (*_times("in", ins), *_times("out", outs))
        case nnx.LinearGeneral(), "bias":
            return "bias", _times("out", len(owner.out_features))
        case nnx.Einsum(), "kernel":
            return "matrix", _einsum_roles(owner.einsum_str)
        case nnx.Embed(), "embedding":
            return "embedding", ("in", "out")
        case nnx.Conv() | nnx.ConvTranspose(), "kernel":
            size = owner.kernel_size
            around = _times("in", 1 if isinstance(size, int) else len(size))
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
    return "other", _times("other", ndim)


def _times(role: Role, count: int) -> Roles:
    return (role,) * count


def _einsum_roles(equation: str) -> Roles:
    """A letter of the kernel is summed over, produced, or, where the input has it too, a stack."""
    inputs, output = equation.replace(" ", "").split("->")
    of_input, of_kernel = inputs.split(",")

    def role(letter: str) -> Role:
        if letter not in output:
            return "in"
        return "stack" if letter in of_input else "out"

    return tuple(role(letter) for letter in of_kernel)
