"""From what a framework tells of a module's array to its ParamInfo, with errors for its author."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import attrs
import jax
import jax.numpy as jnp

from trainer_core.errors import UserError
from trainer_core.kinds import Kind, Role
from trainer_core.types import Axis, ParamInfo

Roles = tuple[Role, ...]


@attrs.frozen(kw_only=True)
class Told:
    """What a module's author, or the framework's own layers, tell of an array.

    Attributes:
        kind: as in ParamInfo.
        roles: of its last axes; those in front of them count equal arrays.
        names: logical names, one for each axis; None: none has one.
        blocks: the parts of a fused projection.
    """

    kind: Any
    roles: Sequence[Any]
    names: Any = None
    blocks: Any = ()


def check_array(path: str, what: str, value: Any, trained: bool, otherwise: str) -> None:
    """Refuse what cannot be trained or saved.

    Args:
        path: keys joined by `/`.
        what: the framework's word for it, such as "a Param".
        value: an array, or its shape and dtype.
        trained: whether it is a parameter.
        otherwise: what an array of integers should be, such as "another Variable".

    Raises:
        UserError: it holds no single array, or a random key; an integer parameter.
    """
    whole = f"{path}, {what},"
    if not hasattr(value, "dtype"):
        raise UserError(f"{whole} holds a {type(value).__name__}; hold one array in each Variable")
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        raise UserError(
            f"{whole} holds a random key; use the framework's random streams instead, they are "
            f"seeded anew at each call"
        )
    if trained and not jnp.issubdtype(value.dtype, jnp.inexact):
        raise UserError(f"{whole} is {value.dtype} and has no gradient; make it {otherwise}")


def module_info(path: str, value: Any, told: Told, stacking: str) -> ParamInfo:
    """Return the ParamInfo of one array of a module.

    Args:
        path: keys joined by `/`.
        value: the array, or its shape and dtype.
        told: what is known of it.
        stacking: how the framework names the axis of stacked layers, for the error.

    Raises:
        UserError: what is told does not fit the array.
    """
    roles, shape = tuple(told.roles), tuple(value.shape)
    if told.kind not in get_args(Kind):
        raise UserError(f"{path}: kind={told.kind!r} is none of {', '.join(get_args(Kind))}")
    stacked = len(shape) - len(roles)
    if stacked < 0 or not set(roles) <= set(get_args(Role)):
        raise UserError(
            f"{path}: roles={roles} do not fit an array of shape {shape}; give one of "
            f"{', '.join(get_args(Role))} for each of its axes"
        )
    names = _names(path, told.names, shape, stacking)
    all_roles: Roles = (*times("stack", stacked), *roles)
    return ParamInfo(
        path=path,
        shape=shape,
        dtype=value.dtype,
        axes=tuple(Axis(name, role) for name, role in zip(names, all_roles, strict=True)),
        kind=told.kind,
        blocks=tuple(dict(told.blocks).items()),
    )


def times(role: Role, count: int) -> Roles:
    return (role,) * count


def einsum_roles(equation: str) -> Roles:
    """A letter of the kernel is summed over, produced, or, where the input has it too, a stack."""
    inputs, output = equation.replace(" ", "").split("->")
    of_input, of_kernel = inputs.split(",")

    def role(letter: str) -> Role:
        if letter not in output:
            return "in"
        return "stack" if letter in of_input else "out"

    return tuple(role(letter) for letter in of_kernel)


def _names(path: str, told: Any, shape: tuple[int, ...], stacking: str) -> tuple[str | None, ...]:
    names = getattr(told, "spec", told)
    if names is None:
        return (None,) * len(shape)
    names = tuple(names)
    if len(names) != len(shape):
        raise UserError(
            f"{path} has shape {shape} and the axis names {names}; give one name for each "
            f"axis ({stacking})"
        )
    if not all(name is None or isinstance(name, str) for name in names):
        raise UserError(f"{path} has the axis names {names}; give one logical name for each axis")
    return names
