"""Where the bytes of a device go: what the shardings say, and what XLA adds to that."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import attrs
import jax
import jax.numpy as jnp

from trainer_core.axes import also_over
from trainer_core.program import Program


@attrs.frozen(kw_only=True)
class Memory:
    """Bytes of one device while a step runs.

    The first five are exact: each leaf's shard. Gradients have the shape and sharding of the
    parameters; the rest of XLA's peak is what the step itself needs. Where the peak lies before
    the last gradients exist, less of them is counted.

    Attributes:
        parameters, buffers, optimizer: of the state, which the step updates in place.
        step: what the step and its wrappers keep for themselves, the step number and the key.
        batch: a global batch's rows.
        accumulator: the sum of the microbatches' gradients.
        gradients: of one microbatch, or of the batch.
        activations: all else at the peak: what the backward pass reads, logits, gathered
            parameters, buffers of the exchange.
    """

    parameters: int
    buffers: int
    optimizer: int
    step: int
    batch: int
    accumulator: int
    gradients: int
    activations: int

    @property
    def state(self) -> int:
        """Bytes that stay from step to step."""
        return self.parameters + self.buffers + self.optimizer + self.step

    @property
    def arguments(self) -> int:
        """Bytes that a step is given."""
        return self.state + self.batch

    @property
    def total(self) -> int:
        return sum(attrs.astuple(self))


def memory_of(program: Program, peak: int | None = None) -> Memory:
    """Return the memory of a step.

    Args:
        program: whose step.
        peak: bytes at the fullest moment, from `peak_of`; None: without activations, which
            nobody knows before the step is compiled.
    """
    state = program.abstract_state
    known = {
        "parameters": device_bytes(state.params),
        "buffers": device_bytes(state.buffers),
        "optimizer": device_bytes(state.opt_state),
        "step": device_bytes((state.step, state.key, state.extra)),
        "batch": device_bytes(program.abstract_batch),
    }
    accumulator = _accumulator(program)
    gradients = known["parameters"]
    activations = 0
    if peak is not None:
        rest = max(0, peak - sum(known.values()))
        accumulator = min(accumulator, rest)
        gradients = min(gradients, rest - accumulator)
        activations = rest - accumulator - gradients
    return Memory(**known, accumulator=accumulator, gradients=gradients, activations=activations)


def device_bytes(tree: Any) -> int:
    """Return the bytes of one device's shards of a tree of abstract arrays with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * _width(leaf.dtype)
        for leaf in jax.tree.leaves(tree)
    )


def peak_of(compiled: Any, platform: str) -> int | None:
    """Return the bytes of a device at the fullest moment of a compiled step, as XLA says.

    Args:
        compiled: the step.
        platform: that it was compiled for.
    """
    stats = compiled.memory_analysis()
    if stats is None:
        return None
    whole = (
        stats.argument_size_in_bytes
        + stats.output_size_in_bytes
        - stats.alias_size_in_bytes
        + stats.temp_size_in_bytes
    )
    # What a TPU needs, its compiler says as the peak: its temporaries are of several memories, and
    # do not add up. On a CPU and a GPU they are one allocation, and the peak is something else.
    peak = getattr(stats, "peak_memory_in_bytes", 0) if platform == "tpu" else 0
    return int(peak or whole)


def _accumulator(program: Program) -> int:
    """An accumulate plugin without these settings is taken to keep no sum of its own."""
    settings: Mapping[str, Any] = program.run.config["accumulate"]
    if settings.get("microbatches", 1) == 1:
        return 0
    dtype = jnp.dtype(settings.get("dtype", "float32"))
    axes: tuple[str, ...] = ()
    if settings.get("gradients") == "zero2":
        axes = program.run.axes.replica_axes(program.model.params)

    def summed(leaf: Any) -> jax.ShapeDtypeStruct:
        lies = also_over(leaf.shape, leaf.sharding, axes)
        return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=lies)

    return device_bytes(jax.tree.map(summed, program.abstract_state.params))


def _width(dtype: Any) -> int:
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return int(jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct((), dtype)).size) * 4
    return int(dtype.itemsize)
