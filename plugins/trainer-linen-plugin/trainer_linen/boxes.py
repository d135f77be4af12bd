"""What an initialiser can say of its parameter: a box around the value, as Linen's own are."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import jax
from flax import linen as nn
from flax.core import meta

from trainer_core.kinds import Kind, Role


@attrs.frozen
class Described(meta.AxisMetadata[Any]):
    """A value, and what it is for; see `with_info`."""

    value: Any
    names: tuple[str | None, ...] | None = None
    kind: str | None = None
    roles: tuple[str, ...] | None = None
    blocks: tuple[tuple[str, int], ...] = ()

    def unbox(self) -> Any:
        return self.value

    def replace_boxed(self, val: Any) -> Described:
        return attrs.evolve(self, value=val)

    def add_axis(self, index: int, params: dict[Any, Any]) -> Described:
        def more(axes: Any, new: str | None) -> Any:
            return None if axes is None else (*axes[:index], new, *axes[index:])

        name = params.get(meta.PARTITION_NAME)
        return attrs.evolve(self, names=more(self.names, name), roles=more(self.roles, "stack"))

    def remove_axis(self, index: int, params: dict[Any, Any]) -> Described:
        def fewer(axes: Any) -> Any:
            return None if axes is None else (*axes[:index], *axes[index + 1 :])

        return attrs.evolve(self, names=fewer(self.names), roles=fewer(self.roles))

    # What `nnx.bridge.ToNNX` makes of it: metadata as trainer-nnx-plugin reads it, and back.
    def to_nnx_metadata(self) -> dict[str, Any]:
        metadata = {"out_sharding": self.names, "kind": self.kind, "roles": self.roles}
        known = {name: value for name, value in metadata.items() if value is not None}
        return {"value": self.value, "blocks": self.blocks, **known}

    @classmethod
    def from_nnx_metadata(cls, metadata: dict[str, Any]) -> Described:
        names, kind, roles = map(metadata.get, ("out_sharding", "kind", "roles"))
        return cls(metadata["value"], names, kind, roles, metadata["blocks"])


jax.tree_util.register_dataclass(
    Described, data_fields=["value"], meta_fields=["names", "kind", "roles", "blocks"]
)


def with_info(
    init: Callable[..., Any],
    *,
    names: Sequence[str | None] | None = None,
    kind: Kind | None = None,
    roles: Sequence[Role] | None = None,
    blocks: Mapping[str, int] | Sequence[tuple[str, int]] = (),
) -> Callable[..., Any]:
    """Return an initialiser that also says what its parameter is for.

    It goes wherever Linen takes an initialiser: `kernel_init=with_info(init, kind="router")`, or
    `self.param("gate", with_info(init, kind="matrix", roles=("in", "out")), shape)`. What it
    leaves out follows from the Flax layer, as without it.

    Args:
        init: any initialiser.
        names: the logical name of each axis, as in `nn.with_partitioning`.
        kind, roles, blocks: as in `trainer_core.ParamInfo`.
    """

    @functools.wraps(init)
    def described(*args: Any, **options: Any) -> Described:
        return Described(
            init(*args, **options),
            names=None if names is None else tuple(names),
            kind=kind,
            roles=None if roles is None else tuple(roles),
            blocks=tuple(dict(blocks).items()),
        )

    return described


def is_box(leaf: Any) -> bool:
    return isinstance(leaf, meta.AxisMetadata)


def content(leaf: Any) -> Any:
    """Return the value in a box; its names are not applied: they are not names of mesh axes."""
    if isinstance(leaf, nn.Partitioned):
        return leaf.unbox(apply_constraint=False)
    return leaf.unbox() if is_box(leaf) else leaf


def names_of(leaf: Any) -> tuple[Any, ...] | None:
    """Return the logical names of a box, one for each axis; None where it has none."""
    names = said(leaf, "out_sharding" if is_bridged(leaf) else "names")
    return None if names is None else tuple(names)


def said(leaf: Any, what: str) -> Any:
    """Return what a box says of its value; None where it says nothing of this."""
    if is_bridged(leaf):
        return leaf.metadata.get(what)
    return getattr(leaf, what, None) if is_box(leaf) else None


def is_bridged(leaf: Any) -> bool:
    # `NNXMeta`, around the value of a Variable. To import it would be to import NNX.
    return is_box(leaf) and hasattr(leaf, "var_type")


def opened(tree: Any) -> Any:
    """Return a tree with every box replaced by its value."""
    return jax.tree.map(content, tree, is_leaf=is_box)
