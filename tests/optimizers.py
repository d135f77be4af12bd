"""Optimizers of a user's own, for `[optimizer] use = "optax"`: every shape that their state has."""

from __future__ import annotations

from typing import Any

import jax
import optax


def clipped(learning_rate: Any) -> optax.GradientTransformation:
    return optax.chain(
        optax.clip_by_global_norm(0.5), optax.ema(0.9), optax.sgd(learning_rate, momentum=0.9)
    )


def partitioned(learning_rate: Any, infos: Any) -> optax.GradientTransformation:
    """Matrices and all else have optimizers of their own, of which one is masked again."""
    labels = jax.tree.map(lambda info: "matrix" if info.kind == "matrix" else "rest", infos)
    parts = {
        "matrix": masked_decay(learning_rate, infos),
        "rest": optax.sgd(learning_rate, momentum=0.9),
    }
    return optax.partition(parts, labels)


def masked_decay(learning_rate: Any, infos: Any) -> optax.GradientTransformation:
    """Decay for matrices, a trace for the rest: each a MaskedState with holes."""
    matrices = jax.tree.map(lambda info: info.kind == "matrix", infos)
    others = jax.tree.map(lambda info: info.kind != "matrix", infos)
    return optax.chain(
        optax.scale_by_adam(),
        optax.masked(optax.add_decayed_weights(0.1), matrices),
        optax.masked(optax.trace(0.5), others),
        optax.scale_by_learning_rate(learning_rate),
    )


def injected(learning_rate: Any) -> optax.GradientTransformation:
    """Hyperparameters are arrays of the state, one by a schedule of its own."""
    made: optax.GradientTransformation = optax.inject_hyperparams(optax.adamw)(
        learning_rate, b1=0.8, weight_decay=optax.linear_schedule(0.1, 0.0, 5)
    )
    return made
