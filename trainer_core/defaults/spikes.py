"""Which losses stand out from those before them: a running mean, kept in the state of the step."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

_MEMORY = 30  # steps: each weighs in the mean 1/30 less than the next
_UNCOUNTED = 20  # the first losses, whose spread is not known yet
_DEVIATIONS = 6.0
_SHARE = 0.01  # of the mean: where losses hardly vary, 6 deviations are nothing


def no_spikes() -> dict[str, Any]:
    """Return the record of a run that has made no step."""
    numbers = {name: jnp.zeros((), jnp.float32) for name in ("mean", "variance")}
    return numbers | {name: jnp.zeros((), jnp.int32) for name in ("losses", "spikes")}


def watched(record: dict[str, Any], loss: jax.Array) -> dict[str, Any]:
    """Return the record after one more loss.

    A spike is a loss above both mean + 6 standard deviations and mean + 1%. It enters the mean
    as if it lay on that edge: the next one is still seen, and a lasting change of level is soon no
    spike any more. A loss that is not finite changes nothing.

    Args:
        record: of the finite losses before: exponentially weighted `mean` and `variance`, how
            many `losses`, how many of them were `spikes`.
        loss: float32 scalar.

    The update of the variance is that of West (1979), doi:10.1145/359146.359153.
    """
    mean, variance, losses = record["mean"], record["variance"], record["losses"]
    counted = losses >= _UNCOUNTED
    edge = mean + jnp.maximum(_DEVIATIONS * jnp.sqrt(variance), _SHARE * jnp.abs(mean))
    change = jnp.where(counted, jnp.minimum(loss, edge), loss) - mean
    weight = 1.0 / jnp.minimum(losses + 1, _MEMORY)  # at first the plain mean of all
    after = {
        "mean": mean + weight * change,
        "variance": (1 - weight) * (variance + weight * change**2),
        "losses": losses + 1,
        "spikes": record["spikes"] + (counted & (loss > edge)),
    }
    finite = jnp.isfinite(loss)
    return {name: jnp.where(finite, after[name], record[name]) for name in record}
