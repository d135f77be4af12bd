"""`[shard]`: every leaf of the state by its logical axes, the optimizer's state like parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

from trainer_core.plugin import hookimpl, plugin, setting

if TYPE_CHECKING:
    from jax.sharding import NamedSharding

    from trainer_core.run import Run
    from trainer_core.types import Model, Shardings, TrainState

# The logical axes of the decoder. "" keeps an axis whole.
DEFAULT_RULES: dict[str, str | list[str]] = {
    "batch": ["data", "fsdp"],
    "length": "",
    "embed": "fsdp",
    "vocab": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "head_dim": "",
    "mlp": "tensor",
    "layers": "",
    "norm": "",
}


@plugin
class Rules:
    mesh: dict[str, int] = setting(
        attrs.Factory(lambda: {"data": -1, "fsdp": 1, "tensor": 1}),
        "devices along each mesh axis; one may be -1: all that remain",
        unit="devices",
        may_change=True,
    )
    rules: dict[str, str | list[str]] = setting(
        attrs.Factory(lambda: dict(DEFAULT_RULES)),
        'which mesh axes a logical axis is spread over; "" for none',
        may_change=True,
    )
    optimizer_state: str = setting(
        "like_params",
        "where the optimizer's state lies: as the parameters, or also over the data axis",
        choices=("like_params", "zero1"),
        may_change=True,
    )

    @hookimpl
    def shard(self, run: Run, model: Model, abstract_state: TrainState) -> Shardings:
        import jax
        from jax.sharding import NamedSharding, PartitionSpec

        from trainer_core.types import Shardings, TrainState

        replicated = NamedSharding(run.mesh, PartitionSpec())
        params = jax.tree.map(run.axes.param_sharding, model.params)
        buffers = jax.tree.map(run.axes.param_sharding, model.buffers)
        like_params = _followers(abstract_state, params)
        opt_state = like_params(abstract_state.opt_state)
        if self.optimizer_state == "zero1":
            opt_state = jax.tree.map(
                lambda leaf, sharding: _also_over(leaf.shape, sharding, "data"),
                abstract_state.opt_state,
                opt_state,
            )
        state = TrainState(
            step=replicated,
            params=params,
            buffers=buffers,
            opt_state=opt_state,
            key=replicated,
            extra=like_params(abstract_state.extra),
        )
        return Shardings(state, run.axes.batch_sharding(), replicated)


def _followers(abstract_state: TrainState, params: Any) -> Any:
    """Return a function that gives each leaf of another tree the sharding of its parameter.

    A leaf follows the parameter whose path its own path ends with, if their shapes are equal;
    all others are replicated.
    """
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    known: dict[tuple[str, ...], tuple[tuple[int, ...], NamedSharding]] = {}
    shapes = jax.tree_util.tree_leaves_with_path(abstract_state.params)
    for (path, leaf), sharding in zip(shapes, jax.tree.leaves(params), strict=True):
        known[tuple(map(str, path))] = (leaf.shape, sharding)

    def place(path: Any, leaf: Any) -> NamedSharding:
        names = tuple(map(str, path))
        for start in range(len(names)):
            follows = known.get(names[start:])
            if follows is not None and follows[0] == leaf.shape:
                return follows[1]
        mesh = jax.tree.leaves(params)[0].mesh
        return NamedSharding(mesh, PartitionSpec())

    return lambda tree: jax.tree_util.tree_map_with_path(place, tree)


def _also_over(shape: tuple[int, ...], sharding: NamedSharding, axis: str) -> NamedSharding:
    """Spread the largest dimension that stays divisible over one more mesh axis."""
    from jax.sharding import NamedSharding, PartitionSpec

    mesh = sharding.mesh
    entries = [*sharding.spec, *[None] * (len(shape) - len(sharding.spec))]
    taken = [(entry,) if isinstance(entry, str) else tuple(entry or ()) for entry in entries]
    if mesh.shape.get(axis, 1) == 1 or any(axis in names for names in taken):
        return sharding
    for index in sorted(range(len(shape)), key=lambda each: -shape[each]):
        parts = mesh.shape[axis]
        for name in taken[index]:
            parts *= mesh.shape[name]
        if shape[index] % parts == 0:
            entries[index] = (*taken[index], axis)
            return NamedSharding(mesh, PartitionSpec(*entries))
    return sharding
