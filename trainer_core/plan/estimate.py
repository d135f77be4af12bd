"""The memory of a step that was not compiled, from one that was and differs in some settings."""

from __future__ import annotations

import math
from typing import Any

import attrs
import jax

from trainer_core.loss import build_loss
from trainer_core.plan.memory import Memory, memory_of
from trainer_core.program import Program


@attrs.frozen
class Estimate:
    """From which the memory of other settings is estimated.

    What the forward pass keeps for the backward pass is known from its trace. The rest of the
    activations, workspace, grows with the rows that a device works on at once; and where less is
    kept, what one layer does not keep is there again while its backward pass runs.

    Attributes:
        kept: bytes that a device keeps.
        rows: that it works on at once.
        activations: bytes that it was seen to need.
    """

    kept: float
    rows: float
    activations: float

    @classmethod
    def from_plan(cls, program: Program, memory: Memory) -> Estimate:
        """Begin from a program and its memory; where that holds no activations, from its trace."""
        kept = kept_bytes(program)
        return cls(kept, rows_at_once(program), memory.activations or kept)

    def memory(self, program: Program) -> Memory:
        """Return the memory of another program: exact but for the activations."""
        kept, scale = kept_bytes(program), rows_at_once(program) / self.rows
        if self.activations < self.kept:  # XLA computes some of it again, or keeps it narrower
            activations = self.activations * kept / self.kept
        else:
            layers = program.run.config["model"].get("layers")
            again = (self.kept * scale - kept) / layers if layers else 0
            activations = kept + max(again, (self.activations - self.kept) * scale)
        return attrs.evolve(memory_of(program), activations=round(activations))


def kept_bytes(program: Program) -> float:
    """Return the bytes of a device that the forward pass of one microbatch keeps.

    They are taken to be spread as the batch is; a tensor axis may split some of them further.
    """
    state = program.abstract_state
    loss = build_loss(program.model)

    def backward(params: Any, buffers: Any, batch: Any, key: Any) -> Any:
        return jax.vjp(lambda params: loss(params, buffers, batch, key)[0], params)[1]

    residuals = jax.eval_shape(
        backward, state.params, state.buffers, program.abstract_batch, state.key
    )
    size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(residuals))
    return float(size * rows_at_once(program) / program.run.batch_size)


def rows_at_once(program: Program) -> float:
    """Return of how many sequences a device computes the gradient at once."""
    run = program.run
    microbatches = run.config["accumulate"].get("microbatches", 1)
    return float(run.batch_size / (run.axes.batch_parts() * microbatches))
