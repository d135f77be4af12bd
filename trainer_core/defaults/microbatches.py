"""The gradient of a global batch from its microbatches, one after the other: traced code."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.interpreters import partial_eval
from jax.sharding import Mesh, PartitionSpec

from trainer_core.types import Batch, Buffers, GradFn, Gradient, LossFn, Model, Params

Weigh = Callable[..., Any]
Summed = Callable[..., tuple[Any, jax.Array, Any, Buffers]]


def whole(loss: LossFn) -> GradFn:
    """Return the gradient of a batch at once."""
    gradient = _with_terms(loss)

    def grad_fn(params: Params, buffers: Buffers, batch: Batch, key: jax.Array) -> Gradient:
        first = jax.random.fold_in(key, 0)
        (loss, (terms, buffers)), grads = gradient(params, buffers, batch, first, None)
        return Gradient(grads, loss, terms, buffers)

    return grad_fn


def in_parts(
    model: Model,
    loss: LossFn,
    count: int,
    dtype: str,
    spread: Callable[[Any], Any] = lambda grads: grads,
    reduced: Callable[[Weigh, Summed], Summed] | None = None,
) -> GradFn:
    """Return the gradient of a batch as a sum over its parts.

    Args:
        model: whose loss it is.
        loss: of a part, divided by the weights of the whole batch.
        count: of parts; it divides the rows of a batch.
        dtype: in which gradients are added up.
        spread: pins the sum of gradients to where it lies.
        reduced: makes one function of what weighs the parts and what adds them up, as
            `reduced_once` does; by default one after the other.
    """
    weigh = functools.partial(_weights, model)
    summed = functools.partial(_summed, _with_terms(loss), dtype, spread)
    work = _all_here(weigh, summed) if reduced is None else reduced(weigh, summed)

    def split(array: jax.Array) -> jax.Array:
        # [batch] -> [count, batch / count], every device keeping its own rows. A plain reshape
        # to [count, batch / count] would move rows between devices at every microbatch.
        return jnp.swapaxes(array.reshape(array.shape[0] // count, count, *array.shape[1:]), 0, 1)

    def grad_fn(params: Params, buffers: Buffers, batch: Batch, key: jax.Array) -> Gradient:
        parts = jax.tree.map(split, batch)
        keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(jnp.arange(count))
        grads, total, terms, buffers = work(params, buffers, parts, keys)
        return Gradient(grads, total, terms, buffers)

    return grad_fn


def reduced_once(mesh: Mesh, axes: tuple[str, ...]) -> Callable[[Weigh, Summed], Summed]:
    """Return what makes devices that hold the same parameters add up their gradients once.

    Left to XLA, they do so after every part. Here each of them works through all parts of its own
    rows, under `shard_map` over these axes alone; the other axes stay XLA's.

    Args:
        mesh: of the run.
        axes: over which rows are spread, and no parameter is.
    """

    def reduced(weigh: Weigh, summed: Summed) -> Summed:
        def local(params: Params, buffers: Buffers, parts: Any, keys: Any) -> Any:
            # Rows of different devices shall not share their masks.
            place = jax.lax.axis_index(axes)
            keys = jax.vmap(lambda key: jax.random.fold_in(key, place))(keys)
            # Of all devices: a mean with a weight of one counts once on each.
            weights = jax.lax.psum(weigh(params, buffers, parts, keys), axes)
            grads, total, terms, buffers = summed(params, buffers, parts, keys, weights)
            return *jax.lax.psum((grads, total, terms), axes), buffers

        none, rows = PartitionSpec(), PartitionSpec(None, axes)
        mapped: Summed = jax.shard_map(
            local,
            mesh=mesh,
            in_specs=(none, none, rows, none),
            out_specs=none,
            axis_names=set(axes),
            # With it, JAX would add up each gradient where it is made, as XLA does.
            check_vma=False,
        )
        return mapped

    return reduced


def _all_here(weigh: Weigh, summed: Summed) -> Summed:
    def work(params: Params, buffers: Buffers, parts: Any, keys: jax.Array) -> Any:
        weights = weigh(params, buffers, parts, keys)
        return summed(params, buffers, parts, keys, weights)

    return work


def _weights(model: Model, params: Params, buffers: Buffers, parts: Any, keys: jax.Array) -> Any:
    """Each term's weight over all parts."""

    def weigh(part: Any, params: Params, buffers: Buffers, key: jax.Array) -> Any:
        terms, _ = model.terms(params, buffers, part, key, True)
        return {name: term.weight for name, term in terms.items()}

    part, key = jax.tree.map(lambda each: each[0], (parts, keys))
    closed, form = jax.make_jaxpr(weigh, return_shape=True)(part, params, buffers, key)
    rows = jax.tree.leaves(parts)
    keep = [index < len(rows) for index in range(len(closed.jaxpr.invars))]
    jaxpr, used = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars), keep)
    if jaxpr.effects or any(used[len(rows) :]):
        weights = jax.lax.map(lambda each: weigh(each[0], params, buffers, each[1]), (parts, keys))
    else:
        # They depend on the batch alone, of which all parts are there: devices tell each other
        # one sum, and not one a part. Nor do they so in a loop, beside what else they tell: XLA
        # for CPUs leaves the order of the two open, and processes would wait for each other.
        found = jax.vmap(functools.partial(jax.core.eval_jaxpr, jaxpr, closed.consts))(*rows)
        weights = jax.tree.unflatten(jax.tree.structure(form), found)
    return jax.tree.map(lambda each: jnp.sum(each, axis=0), weights)


def _with_terms(loss: LossFn) -> Any:
    return jax.value_and_grad(loss, has_aux=True)


def _summed(
    gradient: Any,
    dtype: str,
    spread: Callable[[Any], Any],
    params: Params,
    buffers: Buffers,
    parts: Any,
    keys: jax.Array,
    weights: Any,
) -> tuple[Any, jax.Array, Any, Buffers]:
    def add(carry: Any, each: Any) -> tuple[Any, Any]:
        grads, total, buffers = carry
        (part, (terms, buffers)), part_grads = gradient(params, buffers, *each, weights)
        grads = jax.tree.map(lambda a, b: a + b.astype(a.dtype), grads, part_grads)
        return (spread(grads), total + part, buffers), terms

    zeros = spread(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, dtype), params))
    start = (zeros, jnp.zeros((), jnp.float32), buffers)
    (grads, total, buffers), terms = jax.lax.scan(add, start, (parts, keys))
    return grads, total, jax.tree.map(lambda each: jnp.sum(each, axis=0), terms), buffers
