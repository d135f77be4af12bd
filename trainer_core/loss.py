"""The loss of a batch: each term's sum divided by its own weight, once, and added up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from trainer_core.errors import UserError, kind_of
from trainer_core.types import Batch, Buffers, LossFn, Model, Params, Term

MODEL = ("model.use", "model.module")  # the settings that an error about the model comes from


def build_loss(model: Model, train: bool = True) -> LossFn:
    """Return `loss(params, buffers, batch, key, weights) -> (loss, (terms, buffers))`.

    `loss = Σ coefficient_i · sum_i / W_i`, a float32 scalar, where W_i is `weights[i]` or, where
    `weights` is None, the term's own weight. A term whose W_i is 0 contributes 0.
    """

    def loss(
        params: Params,
        buffers: Buffers,
        batch: Batch,
        key: jax.Array,
        weights: Mapping[str, jax.Array] | None = None,
    ) -> tuple[jax.Array, tuple[dict[str, Term], Buffers]]:
        terms, buffers = model.terms(params, buffers, batch, key, train)
        terms = _checked(terms, model)
        if weights is None:
            weights = {name: term.weight for name, term in terms.items()}
        total = jnp.zeros((), jnp.float32)
        for name, term in terms.items():
            total += model.coefficient(name) * divided(Term(term.sum, weights[name]))
        return total, (terms, buffers)

    return loss


def divided(term: Term) -> jax.Array:
    """Return a term's sum divided by its weight; 0 where the weight is 0."""
    weight = jax.lax.stop_gradient(term.weight)
    return jnp.where(weight == 0, 0.0, term.sum / jnp.where(weight == 0, 1.0, weight))


def term_losses(terms: Mapping[str, Term], model: Model) -> dict[str, jax.Array]:
    """Return `loss` and, where there are several terms, `loss/TERM` for each."""
    total = sum(
        (model.coefficient(name) * divided(term) for name, term in terms.items()),
        start=jnp.zeros((), jnp.float32),
    )
    return {"loss": total, **losses_by_term(terms)}


def losses_by_term(terms: Mapping[str, Term]) -> dict[str, jax.Array]:
    """Return `loss/TERM` for each term, where there are several."""
    if len(terms) < 2:
        return {}
    return {f"loss/{name}": divided(term) for name, term in terms.items()}


def _checked(terms: Any, model: Model) -> dict[str, Term]:
    if not isinstance(terms, Mapping) or not terms:
        raise UserError(
            f"the model's terms returned {described(terms)}; expected a dict of "
            f"trainer_core.Term(sum, weight) by name, such as "
            f'{{"cross_entropy": Term(losses.sum(), weights.sum())}}',
            *MODEL,
        )
    checked = {}
    for name, term in terms.items():
        if not isinstance(term, Term):
            raise UserError(
                f"the model's term {name!r} is {described(term)}, not a sum and a weight; return "
                f"trainer_core.Term(sum, weight): a bare mean would be wrong as soon as "
                f"microbatches or devices hold unequal numbers of targets",
                *MODEL,
            )
        parts = [jnp.asarray(part, jnp.float32) for part in (term.sum, term.weight)]
        if any(part.shape for part in parts):
            shapes = f"{parts[0].shape} and {parts[1].shape}"
            raise UserError(
                f"the model's term {name!r} has a sum and a weight of shapes {shapes}; "
                f"expected two scalars",
                *MODEL,
            )
        checked[name] = Term(parts[0], jax.lax.stop_gradient(parts[1]))
    unknown = set(model.coefficients) - set(checked)
    if unknown:
        raise UserError(
            f"the model gives coefficients for {', '.join(sorted(unknown))}, but its terms are "
            f"{', '.join(checked)}",
            "model.coefficients",
        )
    return checked


def described(value: Any) -> str:
    """Return what a model gave instead of a Term, in words."""
    if hasattr(value, "shape"):
        return f"a bare array of shape {tuple(value.shape)}"
    return kind_of(value)
