"""`[accumulate]`: the gradient of a global batch from microbatches, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from attrs.validators import ge

from trainer_core.errors import SettingError, UserError
from trainer_core.plugin import hookimpl, plugin, setting

if TYPE_CHECKING:
    from trainer_core.run import Run
    from trainer_core.types import GradFn, LossFn, Model


@plugin
class Microbatch:
    """With weights W_i over the whole global batch, known first, each microbatch k contributes
    the gradient of `Σ_i coefficient_i · sum_ik / W_i`. Their sum is the gradient of the global
    batch exactly, however the weights are spread, for several terms too. Buffers pass from one
    microbatch to the next: batch statistics are those of microbatches.
    """

    microbatches: int = setting(1, "parts a global batch is computed in", check=ge(1))
    dtype: str = setting(
        "float32", "in which gradients are added up", choices=("float32", "bfloat16", "float64")
    )
    gradients: str = setting(
        "like_params",
        "where their sum lies: as the parameters, or also over the mesh axes that spread rows "
        "alone (ZeRO-2)",
        choices=("like_params", "zero2"),
        may_change=True,
    )
    reduce: str = setting(
        "each",
        "when devices with the same parameters add up their gradients: after each microbatch, or "
        "once, after the last",
        choices=("each", "once"),
    )

    def check(self, config: Mapping[str, Any]) -> list[str]:
        batch_size = config["data"].get("batch_size", 1)
        if batch_size % self.microbatches:
            raise SettingError(
                "microbatches",
                f"must divide [data] batch_size = {batch_size}; "
                f"the next batch_size that fits one device is "
                f"{_next_multiple(batch_size, self.microbatches)}; on several it must be divisible "
                f"by microbatches x those that [shard] mesh spreads a batch over",
            )
        if self.reduce == "once" and self.gradients == "zero2":
            raise SettingError(
                "reduce",
                'excludes gradients = "zero2": a sum that is reduced once is whole on each device '
                "until then; choose one of them",
            )
        if self.microbatches > 1:
            return []
        idle = {"gradients": self.gradients == "zero2", "reduce": self.reduce == "once"}
        return [
            f"[accumulate] {name} does nothing with microbatches = 1"
            for name, is_set in idle.items()
            if is_set
        ]

    @hookimpl
    def accumulate(self, run: Run, model: Model, loss: LossFn) -> GradFn:
        import jax

        parts = self.microbatches * run.axes.batch_parts()
        if run.batch_size % parts and not run.is_read:  # nothing is accumulated in reading
            raise UserError(
                f"[data] batch_size = {run.batch_size} must be divisible by "
                f"[accumulate] microbatches = {self.microbatches} x the {run.axes.batch_parts()} "
                f"devices that [shard] mesh spreads a batch over; the next that fits is "
                f"{_next_multiple(run.batch_size, parts)}",
                "data.batch_size",
                "accumulate.microbatches",
                "shard.mesh",
            )
        if self.dtype == "float64" and not getattr(jax.config, "jax_enable_x64", False):
            raise UserError(
                '[accumulate] dtype = "float64": JAX would make it float32; set JAX_ENABLE_X64=1',
                "accumulate.dtype",
            )
        if self.microbatches == 1:
            return build_grad(model, loss)
        from trainer_core.defaults.microbatches import in_parts, reduced_once

        placing: dict[str, Any] = {}
        if self.gradients == "zero2":
            placing["spread"] = _over_replicas_too(run, model)
        if self.reduce == "once" and run.mesh.size > 1:
            placing["reduced"] = reduced_once(run.mesh, _replica_axes(run, model))
        return in_parts(model, loss, self.microbatches, self.dtype, **placing)


def _over_replicas_too(run: Run, model: Model) -> Callable[[Any], Any]:
    import jax

    from trainer_core.axes import also_over

    axes = run.axes.replica_axes(model.params)
    shardings = jax.tree.map(
        lambda info: also_over(info.shape, run.axes.param_sharding(info), axes), model.params
    )
    return lambda grads: jax.lax.with_sharding_constraint(grads, shardings)


def _replica_axes(run: Run, model: Model) -> tuple[str, ...]:
    import jax

    keys = ("accumulate.reduce", "shard.mesh", "shard.rules")
    if jax.tree.leaves(model.buffers):
        raise UserError(
            '[accumulate] reduce = "once": the model has buffers, such as batch statistics, and '
            'each device would have its own; set reduce = "each"',
            *keys,
        )
    axes = run.axes.replica_axes(model.params)
    if not axes:
        raise UserError(
            '[accumulate] reduce = "once": no mesh axis spreads rows alone, so that there is '
            'nothing to reduce once; set reduce = "each", or [shard] mesh = {data = N}',
            *keys,
        )
    return axes


def _next_multiple(size: int, of: int) -> int:
    return -(-size // of) * of


def build_grad(model: Model, loss: LossFn, microbatches: int = 1, dtype: str = "float32") -> GradFn:
    """Return `grad_fn(params, buffers, batch, key) -> Gradient`; usable in a loop of one's own.

    Args:
        model: whose loss it is.
        loss: from `trainer_core.build_loss(model)`.
        microbatches: parts a batch is computed in; they divide its rows.
        dtype: in which the gradients of several are added up.
    """
    from trainer_core.defaults.microbatches import in_parts, whole

    return whole(loss) if microbatches == 1 else in_parts(model, loss, microbatches, dtype)
