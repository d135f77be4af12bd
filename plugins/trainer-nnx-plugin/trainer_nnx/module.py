"""Any `nnx.Module` as a model of pure functions: the module is merged and split inside the step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx

from trainer_core.layers import Constrain, unconstrained
from trainer_core.types import Batch, Buffers, Model, Params, Term
from trainer_core.user_module import (
    checked_terms,
    method_of,
    module_summary,
    no_terms,
    takes,
)
from trainer_nnx.bridge import explaining, with_sown
from trainer_nnx.graph import Layout, build, join, layout, split

Terms: TypeAlias = Callable[..., Mapping[str, Term]]


def as_model(
    make: Callable[[nnx.Rngs], nnx.Module],
    terms: Terms | None = None,
    logits: Callable[[Any, Batch], jax.Array] | None = None,
    constrain: Constrain | None = None,
    coefficients: Mapping[str, float] | None = None,
) -> Model:
    """Return a module of your own as a model that the trainer can train.

    What is an `nnx.Param` is trained. Random streams are seeded anew at each call from the step's
    key and their path, and never saved. `nnx.Intermediate` and `nnx.Cache` live only within a
    call. Every other Variable, and every array that is an attribute, is a buffer: it is saved,
    and what `terms` leaves in it is there at the next step. A `Term` that a Linen block sows into
    `losses` is a term of the loss.

    Args:
        make: makes the module from random streams; it runs under jit.
        terms: `terms(module, batch) -> {name: Term(sum, weight)}`; None: the module's method. One
            that has a parameter `constrain` is given it.
        logits: `logits(module, batch) -> array`; None: the module's method, if it has one.
        constrain: `constrain(x, names)` places an activation by its logical axes.
        coefficients: by which each term counts in the loss, 1 where it is not named.

    Raises:
        UserError: the module cannot be built, hides modules or arrays in plain containers, or has
            no terms; names its class and the remedy.
    """
    parts = layout(make)
    terms = terms or method_of(parts.module_type, "terms")
    if terms is None:
        raise no_terms(parts.name)
    logits = logits or method_of(parts.module_type, "logits")
    extra = {"constrain": constrain or unconstrained} if takes(terms, "constrain") else {}

    def init(key: jax.Array) -> tuple[Params, Buffers]:
        return split(build(make, key), parts)

    def call_terms(
        params: Params, buffers: Buffers, batch: Batch, key: jax.Array, train: bool
    ) -> tuple[dict[str, Term], Buffers]:
        module = _prepared(parts, params, buffers, key, train)
        with _as_built(module):
            own = checked_terms(terms(module, batch, **extra), parts.name)
        return with_sown(own, module, parts.name), split(module, parts)[1] if train else buffers

    def call_logits(params: Params, buffers: Buffers, batch: Batch) -> jax.Array:
        assert logits is not None
        module = _prepared(parts, params, buffers, jax.random.key(0), train=False)
        with _as_built(module):
            return logits(module, batch).astype(jnp.float32)

    return Model(
        init=init,
        terms=call_terms,
        params=parts.param_infos(),
        buffers=parts.buffer_infos(),
        coefficients=coefficients or {},
        logits=call_logits if logits is not None else None,
        summary=module_summary(parts.name, (slot.info for slot in parts.params)),
    )


@contextlib.contextmanager
def _as_built(module: nnx.Module) -> Iterator[None]:
    # A bridged module makes its Variables anew at each call: they are placed no more than at first.
    with nnx.use_eager_sharding(False), explaining(module):  # type: ignore[no-untyped-call]
        yield


def _prepared(
    parts: Layout, params: Params, buffers: Buffers, key: jax.Array, train: bool
) -> nnx.Module:
    module: nnx.Module = join(parts, params, buffers, key)
    if train:
        module.train()  # type: ignore[no-untyped-call]
    else:
        module.eval()  # type: ignore[no-untyped-call]
    return module
