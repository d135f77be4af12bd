"""One model written in both frameworks under the same names, with statistics and a count.

Small and regular, so that a run takes little longer than its compilation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import programs
from flax import linen as nn
from flax import nnx

from trainer_core import Term, fit
from trainer_core.loop import Result

INPUTS, HIDDEN, OUTPUTS = 8, 16, 8
RISING, FALLING = ("embed", "mlp"), ("mlp", "embed")
TWINS: dict[str, dict[str, Any]] = {
    "nnx": {"use": "nnx-module", "module": "twins:InNNX"},
    "linen": {"use": "linen-module", "module": "twins:InLinen"},
}


def trained(
    directory: Path,
    framework: str,
    steps: int,
    accept_changes: bool = False,
    **tables: Mapping[str, Any],
) -> Result:
    """Train a twin, or go on with it, in a run directory."""
    recipe = programs.recipe(
        run={"directory": str(directory), "steps": steps},
        model=TWINS[framework],
        data={"held_out": 0},
        **tables,
    )
    return fit(recipe, accept_changes=accept_changes)


def waves(key: Any, shape: Any, dtype: Any = jnp.float32) -> jax.Array:
    """An initialiser without random bits: those take long to compile."""
    return jnp.sin(jnp.arange(math.prod(shape), dtype=dtype)).reshape(shape)


def squares(scores: jax.Array, batch: Any) -> dict[str, Term]:
    errors = jnp.mean((scores - batch["targets"]) ** 2, axis=-1)
    return {"squares": Term(jnp.sum(batch["weights"] * errors), jnp.sum(batch["weights"]))}


class Count(nnx.Variable[Any]):
    """A kind of state of its own."""


class InNNX(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        rise, fall = (nnx.with_partitioning(waves, names) for names in (RISING, FALLING))
        self.hidden = nnx.Linear(INPUTS, HIDDEN, kernel_init=rise, rngs=rngs)
        self.norm = nnx.BatchNorm(HIDDEN, rngs=rngs)
        self.out = nnx.Linear(HIDDEN, OUTPUTS, use_bias=False, kernel_init=fall, rngs=rngs)
        self.seen = Count(jnp.zeros((), jnp.int32))

    def terms(self, batch: Any) -> dict[str, Term]:
        self.seen[...] += len(batch["x"])
        return squares(self.out(jax.nn.relu(self.norm(self.hidden(batch["x"])))), batch)


class InLinen(nn.Module):
    def setup(self) -> None:
        rise, fall = (nn.with_partitioning(waves, names) for names in (RISING, FALLING))
        self.hidden = nn.Dense(HIDDEN, kernel_init=rise)
        self.norm = nn.BatchNorm()
        self.out = nn.Dense(OUTPUTS, use_bias=False, kernel_init=fall)
        self.seen = self.variable("counts", "seen", lambda: jnp.zeros((), jnp.int32))

    def terms(self, batch: Any, train: bool) -> dict[str, Term]:
        if not self.is_initializing():
            self.seen.value += len(batch["x"])
        normed = self.norm(self.hidden(batch["x"]), use_running_average=not train)
        return squares(self.out(jax.nn.relu(normed)), batch)
