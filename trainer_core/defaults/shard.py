"""`[shard]`: every leaf of the state by its logical axes, the optimizer's state like parameters."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs

from trainer_core.errors import SettingError, UserError
from trainer_core.plugin import hookimpl, plugin, setting
from trainer_core.suggest import did_you_mean

if TYPE_CHECKING:
    from jax.sharding import Mesh, NamedSharding

    from trainer_core.run import Run
    from trainer_core.types import Model, Params, Shardings, TrainState

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


_MESH = {"data": -1, "fsdp": 1, "tensor": 1}


@plugin
class Rules:
    mesh: dict[str, int] = setting(
        attrs.Factory(lambda: dict(_MESH)),
        "devices along each mesh axis; one may be -1: all that remain",
        unit="devices",
        may_change=True,
    )
    rules: dict[str, str | list[str]] = setting(
        attrs.Factory(lambda: dict(DEFAULT_RULES)),
        'which mesh axes a logical axis is spread over; "" for none',
        may_change=True,
    )
    overrides: dict[str, dict[str, str | list[str]]] = setting(
        attrs.Factory(dict),
        'other rules for some parameters, by path: {"layers/mlp/*" = {embed = ""}}',
        may_change=True,
    )
    uneven: str = setting(
        "error",
        "what becomes of an axis of a parameter that its devices do not divide: an error, or "
        "spread only over the mesh axes that do",
        choices=("error", "replicate"),
        may_change=True,
    )
    dcn: dict[str, int] = setting(
        attrs.Factory(dict),
        "of the mesh, devices along each axis in different slices (or, without slices, processes)",
        unit="devices",
        may_change=True,
    )
    optimizer_state: str = setting(
        "like_params",
        "where the optimizer's state lies: as the parameters, or also over the mesh axes that "
        "spread rows alone",
        choices=("like_params", "zero1"),
        may_change=True,
    )

    def check(self, config: Mapping[str, Any]) -> None:
        """An axis that no rule names can spread nothing, whatever the model is."""
        rules = [self.rules, *self.overrides.values()]
        used = {axis for each in rules for rule in each.values() for axis in _names(rule)}
        for axis, size in self.mesh.items():
            # One of ours that is left at -1 is 1, where others take all devices.
            if size != 1 and (size != -1 or axis not in _MESH) and axis not in used:
                raise SettingError(
                    "mesh",
                    f"no rule spreads anything over its axis {axis!r}{did_you_mean(axis, used)}; "
                    f'name it in [shard] rules, such as {{batch = ["data", "{axis}"]}}',
                )

    @hookimpl
    def shard(
        self,
        run: Run,
        model: Model,
        abstract_state: TrainState,
        derive: Callable[[Params], tuple[Any, dict[str, Any]]],
    ) -> Shardings:
        import jax
        from jax.sharding import NamedSharding, PartitionSpec

        from trainer_core.axes import also_over
        from trainer_core.types import Shardings, TrainState

        self._check_rules(run, model)
        replicated = NamedSharding(run.mesh, PartitionSpec())
        params = jax.tree.map(run.axes.param_sharding, model.params)
        opt_state, extra = derived_shardings(derive, abstract_state.params, params, run.mesh)
        if self.optimizer_state == "zero1":
            axes = run.axes.replica_axes(model.params)
            opt_state = jax.tree.map(
                lambda leaf, sharding: also_over(leaf.shape, sharding, axes),
                abstract_state.opt_state,
                opt_state,
            )
        state = TrainState(
            step=replicated,
            params=params,
            buffers=jax.tree.map(run.axes.param_sharding, model.buffers),
            opt_state=opt_state,
            key=replicated,
            extra=extra,
        )
        shardings = Shardings(state, run.axes.batch_sharding(), replicated)
        _check_idle_axes(run, shardings)
        return shardings

    def _check_rules(self, run: Run, model: Model) -> None:
        """A misspelled rule would leave what it is for whole, in silence."""
        import jax

        infos = [*jax.tree.leaves(model.params), *jax.tree.leaves(model.buffers)]
        used = {axis.name for info in infos for axis in info.axes if axis.name}
        used.update(run.axes.activations)
        for name in self.rules:
            if name not in DEFAULT_RULES and name not in used:
                raise UserError(
                    f"[shard] rules: {name} = {json.dumps(self.rules[name])}: the model has no "
                    f"such logical axis{did_you_mean(name, used)}; it has: "
                    f"{', '.join(sorted(used))}",
                    "shard.rules",
                )
        for pattern, rules in self.overrides.items():
            fitting = [info for info in infos if fnmatch.fnmatchcase(info.path, pattern)]
            axes = {axis.name for info in fitting for axis in info.axes if axis.name}
            where = f'[shard] overrides: "{pattern}"'
            if not fitting:
                near = did_you_mean(pattern, [info.path for info in infos])
                raise UserError(f"{where} fits no parameter{near}", "shard.overrides")
            for name in rules:
                if name not in axes:
                    raise UserError(
                        f"{where}: no parameter that it fits has a logical axis {name!r}"
                        f"{did_you_mean(name, axes)}; they have: {', '.join(sorted(axes))}",
                        "shard.overrides",
                    )


def _check_idle_axes(run: Run, shardings: Shardings) -> None:
    """The devices along an axis that spreads nothing would all compute the same, in silence."""
    import jax

    from trainer_core.axes import mesh_axes_of

    placed = jax.tree.leaves((shardings.state, shardings.batch))
    used = {axis for each in placed for axes in mesh_axes_of(each.spec, 0) for axis in axes}
    used.update(*run.axes.activations.values())
    for axis, size in run.mesh.shape.items():
        if size > 1 and axis not in used:
            names = [name for name, rule in run.axes.rules.items() if axis in _names(rule)]
            rules = f"the rules of {', '.join(names)}" if names else "no rule at all"
            raise UserError(
                f"[shard] mesh: the {size} devices along {axis!r} would all compute the same: "
                f"no array of this model is spread over it, by {rules}; give these devices to "
                f'another axis, or spread rows over it: [shard] rules = {{batch = ["data", '
                f'"{axis}"]}}',
                "shard.mesh",
                "shard.rules",
            )


def _names(rule: str | Sequence[str]) -> Sequence[str]:
    return [rule] if isinstance(rule, str) else rule


def derived_shardings(
    derive: Callable[[Params], tuple[Any, dict[str, Any]]], params: Params, placed: Any, mesh: Mesh
) -> tuple[Any, dict[str, Any]]:
    """Return where the state lies that `derive` makes from the parameters.

    Traced under an Explicit abstract mesh, JAX itself carries the shardings through `init`, also
    to the row and column factors of adafactor. Where that raises, or says nothing of a leaf, the
    leaf follows the parameter whose path its own ends with, if their shapes are equal but for
    axes in front; all else is replicated.
    """
    import jax
    from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

    kinds = (AxisType.Explicit,) * len(mesh.axis_names)
    explicit = AbstractMesh(mesh.axis_sizes, mesh.axis_names, axis_types=kinds)
    known = {}
    for (path, leaf), sharding in zip(
        jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(placed), strict=True
    ):
        known[tuple(map(str, path))] = (leaf.shape, sharding.spec)

    def on_explicit(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
        where = NamedSharding(explicit, sharding.spec)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    def place(path: Any, leaf: Any) -> NamedSharding:
        spec = getattr(getattr(leaf, "sharding", None), "spec", PartitionSpec())
        names = tuple(map(str, path))
        for start in range(len(names)):
            shape, follows = known.get(names[start:], (None, spec))
            # In front there may be more axes: L-BFGS keeps the last of its steps so.
            before = len(leaf.shape) - len(shape or ())
            if shape == leaf.shape[before:] and not any(spec):
                spec = PartitionSpec(*[None] * before, *follows)
        return NamedSharding(mesh, spec)

    try:
        with jax.sharding.use_abstract_mesh(explicit):
            made = jax.eval_shape(derive, jax.tree.map(on_explicit, params, placed))
    except Exception:
        made = jax.eval_shape(derive, params)
    shardings: tuple[Any, dict[str, Any]] = jax.tree_util.tree_map_with_path(place, made)
    return shardings
