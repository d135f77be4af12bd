"""Loss terms: a float32 sum and the weight to divide it by, never a mean."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from trainer_core.types import Term


def token_cross_entropy(
    logits: jax.Array, targets: jax.Array, weights: jax.Array | None = None
) -> Term:
    """Return the weighted sum of the tokens' negative log-likelihoods, and of their weights.

    Args:
        logits: [batch, length, vocab].
        targets: [batch, length] integers below vocab.
        weights: [batch, length]; 0 where a target does not count. None: every target counts once.
    """
    return cross_entropy(logits, targets, weights)


def cross_entropy(logits: jax.Array, labels: jax.Array, weights: jax.Array | None = None) -> Term:
    """Return the weighted sum of negative log-likelihoods of classes, and of the weights.

    Args:
        logits: [..., classes], of any float dtype; computed in float32.
        labels: [...] integers below classes.
        weights: [...]; None: every label counts once.
    """
    logits = logits.astype(jnp.float32)
    # A comparison instead of a gather: where the classes are sharded, each device adds up its own.
    is_label = labels[..., None] == jnp.arange(logits.shape[-1])  # [..., classes]
    of_label = jnp.sum(jnp.where(is_label, logits, 0.0), axis=-1)  # [...]
    losses = jax.nn.logsumexp(logits, axis=-1) - of_label
    if weights is None:
        return Term(jnp.sum(losses), jnp.asarray(losses.size, jnp.float32))
    weights = weights.astype(jnp.float32)
    # A target that does not count may lie where the model is not finite: 0 * inf is not 0.
    counted = jnp.where(weights == 0, 0.0, losses * weights)
    return Term(jnp.sum(counted), jnp.sum(weights))
