"""Let a model continue a text, one token after the other, in one compiled function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from trainer_core.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trainer_core.program import Program
    from trainer_core.types import TrainState


def sample(
    program: Program,
    state: TrainState,
    tokens: Sequence[int] | NDArray[Any],
    length: int,
    temperature: float,
    key: jax.Array,
) -> NDArray[np.int32]:
    """Return a text and its continuation.

    The model reads a window of fixed size, as long as the sequences it is trained on: once the
    text is longer, the window moves along. Every token costs a forward pass over the window;
    there is no cache of keys and values, which would be of one model's making.

    Args:
        program: whose model to use; it must have `logits`, and be causal: what stands after the
            end of the text, inside the window, must not be seen.
        state: with its parameters.
        tokens: [prompt], at least one.
        length: how many tokens to add.
        temperature: by which logits are divided; 0: always the likeliest token.
        key: of the choices. The same key gives the same text.

    Returns:
        [prompt + length] int32.

    Raises:
        UserError: the model has no logits, or there is no token to begin with.
    """
    if program.model.logits is None:
        raise UserError("this model cannot be sampled from: it gives no logits (Model.logits)")
    if len(tokens) == 0:
        raise UserError("there is nothing to go on from: the prompt is empty")
    prompt = np.asarray(tokens, np.int32)
    if length <= 0:
        return prompt
    size = window_size(program)
    window = np.zeros(size, np.int32)
    recent = prompt[-size:]
    window[: len(recent)] = recent
    added = _build(program, length)(
        state.params,
        state.buffers,
        window,
        np.int32(len(recent)),
        np.float32(temperature),
        key,
    )
    return np.concatenate([prompt, np.asarray(jax.device_get(added), np.int32)])


def window_size(program: Program) -> int:
    """Return how many tokens the model reads at once: those of a training sequence.

    Raises:
        UserError: the batches hold no tokens.
    """
    tokens = program.abstract_batch.get("tokens")
    if tokens is None or len(tokens.shape) != 2:
        raise UserError("this model cannot be sampled from: its batches hold no tokens")
    context = program.model.context
    return int(tokens.shape[1] if context is None else min(context, tokens.shape[1]))


def _build(program: Program, length: int) -> Callable[..., jax.Array]:
    logits_of = program.model.logits
    assert logits_of is not None
    placed = program.shardings
    whole = placed.replicated

    def write(
        params: Any,
        buffers: Any,
        window: jax.Array,  # [window] int32, filled from its beginning
        count: jax.Array,  # how many of them are text
        temperature: jax.Array,
        key: jax.Array,
    ) -> jax.Array:
        size = window.shape[0]

        def add(carry: tuple[jax.Array, jax.Array], index: jax.Array) -> Any:
            window, count = carry
            logits = logits_of(params, buffers, {"tokens": window[None]})  # [1, window, vocab]
            last = jax.lax.dynamic_index_in_dim(logits[0], count - 1, keepdims=False)  # [vocab]
            token = _choose(last, temperature, jax.random.fold_in(key, index))
            is_full = count == size
            window = jnp.where(is_full, jnp.roll(window, -1), window)
            count = jnp.where(is_full, count, count + 1)
            return (window.at[count - 1].set(token), count), token

        tokens: jax.Array  # [length] int32
        _, tokens = jax.lax.scan(add, (window, count), jnp.arange(length))
        return tokens

    return jax.jit(
        write,
        in_shardings=(placed.state.params, placed.state.buffers, whole, whole, whole, whole),
        out_shardings=whole,
    )


def _choose(logits: jax.Array, temperature: jax.Array, key: jax.Array) -> jax.Array:
    """Return a token: the likeliest at temperature 0, else one drawn from the softmax."""
    scaled = logits.astype(jnp.float32) / jnp.where(temperature > 0, temperature, 1.0)
    drawn = jax.random.categorical(key, scaled)
    token: jax.Array = jnp.where(temperature > 0, drawn, jnp.argmax(logits))
    return token.astype(jnp.int32)
