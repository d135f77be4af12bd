"""Where the bytes of a device go: what the shardings say, and how XLA's temporaries divide."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import attrs
import jax
import jax.numpy as jnp

from trainer_core.axes import also_over
from trainer_core.program import Program

# Bytes of a number while it is drawn: two counters of 4, two words made of them, and a float32.
_DRAWN = 20


@attrs.frozen(kw_only=True)
class Memory:
    """Bytes of one device while a step runs.

    The first five are counted: each leaf's shard; the state is updated in place, so it is there
    once. The others are temporaries. Gradients have the shape and sharding of the parameters, and
    where there are fewer temporaries at the fullest moment, less of them is counted.

    Attributes:
        parameters, buffers, optimizer: of the state, which the step updates in place.
        step: what the step and its wrappers keep for themselves, the step number and the key.
        batch: a global batch's rows.
        accumulator: the sum of the microbatches' gradients.
        gradients: of one microbatch, or of the batch.
        activations: the temporaries that are left: what the backward pass reads, logits, gathered
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


def memory_of(program: Program, temporaries: int | None = None) -> Memory:
    """Return the memory of a step.

    Args:
        program: whose step.
        temporaries: bytes that XLA says it needs beside the state and the batch; None: without
            activations, which nobody knows before the step is compiled.
    """
    state = program.abstract_state
    accumulator, gradients, activations = _accumulator(program), device_bytes(state.params), 0
    if temporaries is not None:
        accumulator = min(accumulator, temporaries)
        gradients = min(gradients, temporaries - accumulator)
        activations = temporaries - accumulator - gradients
    return Memory(
        parameters=device_bytes(state.params),
        buffers=device_bytes(state.buffers),
        optimizer=device_bytes(state.opt_state),
        step=device_bytes((state.step, state.key, state.extra)),
        batch=device_bytes(program.abstract_batch),
        accumulator=accumulator,
        gradients=gradients,
        activations=activations,
    )


def drawing_bytes(program: Program) -> int:
    """Return the most that a device needs to draw the first parameters one after the other.

    It is beside its share of the state. Layers that are no stack are drawn as one, too. Models
    other than the decoder may draw several arrays at once, and so does it before JAX 0.10.
    """
    drawn: Counter[str] = Counter()
    for path, leaf in jax.tree_util.tree_leaves_with_path(program.abstract_state.params):
        place = jax.tree_util.keystr(path, simple=True, separator="/")
        layers = "/".join("*" if key.isdecimal() else key for key in place.split("/"))
        drawn[layers] += math.prod(leaf.sharding.shard_shape(leaf.shape))
    return _DRAWN * max(drawn.values(), default=0)


def device_bytes(tree: Any) -> int:
    """Return the bytes of one device's shards of a tree of abstract arrays with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * _width(leaf.dtype)
        for leaf in jax.tree.leaves(tree)
    )


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
