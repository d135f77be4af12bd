"""Any `nnx.Module` as a model of pure functions: the module is merged and split inside the step."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx

from trainer_core.errors import UserError
from trainer_core.types import Batch, Buffers, Model, ParamInfo, Params, Term
from trainer_nnx.graph import Layout, build, join, layout, split

Terms: TypeAlias = Callable[..., Mapping[str, Term]]
Constrain: TypeAlias = Callable[[jax.Array, tuple[str | None, ...]], jax.Array]


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
    and what `terms` leaves in it is there at the next step.

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
    terms = terms or _method(parts.module_type, "terms")
    if terms is None:
        raise UserError(
            f"{parts.name} has no method terms(self, batch): write one that returns "
            f'{{"loss": Term(sum, weight)}}, or give as_model(..., terms=...)'
        )
    logits = logits or _method(parts.module_type, "logits")
    extra = {"constrain": constrain or _unconstrained} if _takes(terms, "constrain") else {}

    def init(key: jax.Array) -> tuple[Params, Buffers]:
        return split(build(make, key), parts)

    def call_terms(
        params: Params, buffers: Buffers, batch: Batch, key: jax.Array, train: bool
    ) -> tuple[dict[str, Term], Buffers]:
        module = _prepared(parts, params, buffers, key, train)
        found = _checked(terms(module, batch, **extra), parts.name)
        return found, split(module, parts)[1] if train else buffers

    def call_logits(params: Params, buffers: Buffers, batch: Batch) -> jax.Array:
        assert logits is not None
        module = _prepared(parts, params, buffers, jax.random.key(0), train=False)
        return logits(module, batch).astype(jnp.float32)

    return Model(
        init=init,
        terms=call_terms,
        params=parts.param_infos(),
        buffers=parts.buffer_infos(),
        coefficients=coefficients or {},
        logits=call_logits if logits is not None else None,
        summary=_summary(parts),
    )


def _prepared(
    parts: Layout, params: Params, buffers: Buffers, key: jax.Array, train: bool
) -> nnx.Module:
    module: nnx.Module = join(parts, params, buffers, key)
    if train:
        module.train()  # type: ignore[no-untyped-call]
    else:
        module.eval()  # type: ignore[no-untyped-call]
    return module


def _method(module_type: type[nnx.Module], name: str) -> Any:
    method = getattr(module_type, name, None)
    return method if callable(method) else None


def _takes(function: Callable[..., Any], name: str) -> bool:
    try:
        return name in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False


def _unconstrained(x: jax.Array, names: tuple[str | None, ...]) -> jax.Array:
    return x


def _checked(found: Any, name: str) -> dict[str, Term]:
    """Name the module's class in what the core would refuse."""
    remedy = (
        "return {name: Term(sum, weight)}, with a sum over examples and the weight to divide it "
        "by: the trainer divides once, over all microbatches and devices"
    )
    if not isinstance(found, Mapping):
        raise UserError(f"{name}.terms returned {_described(found)}; {remedy}")
    for term, value in found.items():
        if not isinstance(value, Term):
            raise UserError(f"{name}.terms: the term {term!r} is {_described(value)}; {remedy}")
    return dict(found)


def _described(value: Any) -> str:
    if hasattr(value, "shape"):
        return f"a bare array of shape {tuple(value.shape)}"
    return f"a {type(value).__name__}"


def _summary(parts: Layout) -> dict[str, str]:
    infos: list[ParamInfo] = [slot.info for slot in parts.params]
    summary = {
        "module": parts.name,
        "parameters": f"{sum(math.prod(info.shape) for info in infos):,}",
    }
    unknown = [info.path for info in infos if info.kind == "other"]
    if unknown:
        shown = ", ".join(unknown[:5]) + (", …" if len(unknown) > 5 else "")
        verb = "parameter carries" if len(unknown) == 1 else "parameters carry"
        summary["of no known kind"] = f"{len(unknown)} {verb} no ParamInfo: {shown}"
    return summary
