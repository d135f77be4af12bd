"""`[accumulate]`: the gradient of a global batch from microbatches, one after the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from attrs.validators import ge

from trainer_core.errors import SettingError, UserError
from trainer_core.plugin import hookimpl, plugin, setting

if TYPE_CHECKING:
    import jax

    from trainer_core.run import Run
    from trainer_core.types import Batch, Buffers, GradFn, Gradient, LossFn, Model, Params


@plugin
class Microbatch:
    """With weights W_i over the whole global batch, known first, each microbatch k contributes
    the gradient of `Σ_i coefficient_i · sum_ik / W_i`. Their sum is the gradient of the global
    batch exactly, however the weights are spread, for several terms too.
    """

    microbatches: int = setting(1, "parts a global batch is computed in", check=ge(1))
    dtype: str = setting(
        "float32", "in which gradients are added up", choices=("float32", "bfloat16", "float64")
    )

    def check(self, config: Mapping[str, Any]) -> None:
        batch_size = config["data"].get("batch_size", 1)
        if batch_size % self.microbatches:
            raise SettingError(
                "microbatches",
                f"must divide [data] batch_size = {batch_size}; "
                f"the next that fits is {_next_multiple(batch_size, self.microbatches)}",
            )

    @hookimpl
    def accumulate(self, run: Run, model: Model, loss: LossFn) -> GradFn:
        import jax

        if run.batch_size % (self.microbatches * run.axes.batch_parts()):
            raise UserError(
                f"[data] batch_size = {run.batch_size} must be divisible by "
                f"[accumulate] microbatches = {self.microbatches} x the {run.axes.batch_parts()} "
                f"devices that [shard] mesh spreads a batch over; the next that fits is "
                f"{_next_multiple(run.batch_size, self.microbatches * run.axes.batch_parts())}",
                "data.batch_size",
                "accumulate.microbatches",
                "shard.mesh",
            )
        if self.dtype == "float64" and not getattr(jax.config, "jax_enable_x64", False):
            raise UserError(
                '[accumulate] dtype = "float64": JAX would make it float32; set JAX_ENABLE_X64=1',
                "accumulate.dtype",
            )
        return build_grad(model, loss, self.microbatches, self.dtype)


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
    import jax

    gradient = jax.value_and_grad(loss, has_aux=True)
    if microbatches == 1:
        return _whole(gradient)
    return _in_parts(model, gradient, microbatches, dtype)


def _whole(gradient: Any) -> GradFn:
    from trainer_core.types import Gradient

    def grad_fn(params: Params, buffers: Buffers, batch: Batch, key: jax.Array) -> Gradient:
        import jax

        first = jax.random.fold_in(key, 0)
        (loss, (terms, buffers)), grads = gradient(params, buffers, batch, first, None)
        return Gradient(grads, loss, terms, buffers)

    return grad_fn


def _in_parts(model: Model, gradient: Any, count: int, dtype: str) -> GradFn:
    import jax
    import jax.numpy as jnp

    from trainer_core.types import Gradient

    def split(array: jax.Array) -> jax.Array:
        # [batch] -> [count, batch / count], every device keeping its own rows. A plain reshape
        # to [count, batch / count] would move rows between devices at every microbatch.
        return jnp.swapaxes(array.reshape(array.shape[0] // count, count, *array.shape[1:]), 0, 1)

    def grad_fn(params: Params, buffers: Buffers, batch: Batch, key: jax.Array) -> Gradient:
        parts = jax.tree.map(split, batch)
        keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(jnp.arange(count))

        def weigh(carry: None, each: Any) -> tuple[None, Any]:
            # Only the weights are kept, and they depend on the batch alone: XLA drops the rest.
            terms, _ = model.terms(params, buffers, each[0], each[1], True)
            return None, {name: term.weight for name, term in terms.items()}

        _, weights = jax.lax.scan(weigh, None, (parts, keys))
        weights = jax.tree.map(lambda each: jnp.sum(each, axis=0), weights)

        def add(carry: Any, each: Any) -> tuple[Any, Any]:
            grads, loss, buffers = carry
            (part, (terms, buffers)), part_grads = gradient(
                params, buffers, each[0], each[1], weights
            )
            grads = jax.tree.map(lambda a, b: a + b.astype(a.dtype), grads, part_grads)
            return (grads, loss + part, buffers), terms

        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, dtype), params)
        start = (zeros, jnp.zeros((), jnp.float32), buffers)
        (grads, loss, buffers), terms = jax.lax.scan(add, start, (parts, keys))
        terms = jax.tree.map(lambda each: jnp.sum(each, axis=0), terms)
        return Gradient(grads, loss, terms, buffers)

    return grad_fn
