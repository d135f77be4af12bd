"""Any `nn.Module` as a model of pure functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from flax import errors
from flax import linen as nn

from trainer_core.errors import UserError
from trainer_core.layers import Constrain, unconstrained
from trainer_core.loss import MODEL
from trainer_core.sown import sown_terms, together
from trainer_core.types import Batch, Buffers, Model, Params, Term
from trainer_core.user_module import checked_terms, method_of, module_summary, no_terms, takes
from trainer_linen.layout import (
    Layout,
    buffers_after,
    join,
    layout,
    no_stream,
    seeded,
    split,
    unplaced,
)

Terms: TypeAlias = Callable[..., Mapping[str, Term]]


def as_model(
    module: nn.Module,
    batch: Mapping[str, Any],
    terms: Terms | None = None,
    logits: Callable[..., jax.Array] | None = None,
    constrain: Constrain | None = None,
    coefficients: Mapping[str, float] | None = None,
    rngs: Sequence[str] = ("dropout",),
) -> Model:
    """Return a module of your own as a model that the trainer can train.

    The collection `params` is trained. `intermediates`, `losses`, `perturbations` and `cache`
    live only within a call. Every other collection is a buffer: it is saved, and what training
    leaves in it is there at the next step. Its path is that of its module and its name, as in
    NNX. Random streams are seeded anew at each call from the step's key and their name, and never
    saved. A `Term` that is sown into `losses` is a term of the loss.

    Args:
        module: it is initialised by a call of `terms`, on shapes alone.
        batch: an array, or its shape and dtype, for each name of a batch.
        terms: `terms(module, batch) -> {name: Term(sum, weight)}`; None: the module's method. One
            that has a parameter `train` or `constrain` is given it.
        logits: `logits(module, batch) -> array`; None: the module's method, if it has one. It is
            given `train` and `constrain` as well.
        constrain: `constrain(x, names)` places an activation by its logical axes.
        coefficients: by which each term counts in the loss, 1 where it is not named.
        rngs: the names of its random streams.

    Raises:
        UserError: the module cannot be initialised, or has no parameters or no terms; names its
            class and the remedy.
    """
    name = type(module).__qualname__
    method = terms or method_of(type(module), "terms")
    if isinstance(module, nn.Module) and method is None:
        raise no_terms(name)
    read = logits or method_of(type(module), "logits")
    placing = constrain or unconstrained
    parts = layout(module, batch, rngs, method, _options(method, placing, train=False))
    if not parts.params:
        raise UserError(f"{name} has no parameters: there is nothing to train", *MODEL)

    def call_terms(
        params: Params, buffers: Buffers, batch: Batch, key: jax.Array, train: bool
    ) -> tuple[dict[str, Term], Buffers]:
        options = _options(method, placing, train)
        found, after = _apply(parts, method, params, buffers, batch, key, options)
        own = checked_terms(found, name)
        both = together(own, sown_terms(after, name), name)
        return both, buffers_after(after, parts) if train else buffers

    return Model(
        init=lambda key: split(parts.make(key), parts),
        terms=call_terms,
        params=parts.param_infos(),
        buffers=parts.buffer_infos(),
        coefficients=coefficients or {},
        logits=None if read is None else _logits(parts, read, placing),
        summary=module_summary(name, (slot.info for slot in parts.params)),
    )


def _logits(
    parts: Layout, method: Any, constrain: Constrain
) -> Callable[[Params, Buffers, Batch], jax.Array]:
    options = _options(method, constrain, train=False)

    def logits(params: Params, buffers: Buffers, batch: Batch) -> jax.Array:
        key = jax.random.key(0)
        found, _ = _apply(parts, method, params, buffers, batch, key, options)
        return jnp.asarray(found, jnp.float32)

    return logits


def _options(function: Any, constrain: Constrain, train: bool) -> dict[str, Any]:
    given = {"train": train, "constrain": constrain}
    return {name: value for name, value in given.items() if takes(function, name)}


def _apply(
    parts: Layout,
    method: Any,
    params: Params,
    buffers: Buffers,
    batch: Batch,
    key: jax.Array,
    options: Mapping[str, Any],
) -> tuple[Any, Mapping[str, Any]]:
    """Call a method of the module; return what it returned, and its collections after."""
    try:
        with unplaced():
            found: tuple[Any, Mapping[str, Any]] = parts.module.apply(
                join(parts, params, buffers),
                batch,
                method=method,
                rngs=seeded(parts.streams, key),
                # Everything else: a variable that did not exist at first shall not pass unnoticed.
                mutable=nn.DenyList("params"),
                **options,
            )
    except (errors.ScopeParamNotFoundError, errors.ScopeCollectionNotFound) as error:
        raise UserError(
            f"{parts.name}: {str(error).split(' (')[0]} It was not there at first: create "
            f"parameters in terms, whether `train` is true or not",
            *MODEL,
        ) from error
    except errors.InvalidRngError as error:
        raise no_stream(error) from error
    return found
