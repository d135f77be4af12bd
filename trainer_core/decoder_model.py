"""What the decoder is in every framework: a forward pass becomes a `Model`, layers share this.

A framework's plugin writes the modules; terms, metadata, dropout keys and the choice of what to
rematerialise are here, so that they cannot differ.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import attrs
import jax
import jax.numpy as jnp

from trainer_core import layers
from trainer_core.decoder import DecoderConfig
from trainer_core.decoder_parameters import decoder_parameters, initialize
from trainer_core.layers import Constrain, unconstrained
from trainer_core.losses import token_cross_entropy
from trainer_core.randomness import fold
from trainer_core.types import Batch, Buffers, Model, Params, Term

RESIDUAL = ("batch", "length", "embed")
LOGITS = ("batch", "length", "vocab")


class Forward(Protocol):
    """The decoder's forward pass in a framework: float32 logits [batch, length, vocab]."""

    def __call__(self, params: Params, tokens: jax.Array, context: Context) -> jax.Array: ...


@attrs.frozen
class Context:
    """What every layer of one forward pass reads.

    Attributes:
        positions: [batch, length] integers, within a document.
        segments: [batch, length], equal within a document; None: one document a row.
        key: of the dropout masks; None: no dropout.
        constrain: `constrain(x, names)` places an activation by its logical axes.
    """

    positions: jax.Array
    segments: jax.Array | None
    key: jax.Array | None
    constrain: Constrain

    def dropped(self, x: jax.Array, rate: float, *place: Any) -> jax.Array:
        """Return x after the dropout of a place, whose mask depends on key and place alone."""
        if self.key is None or rate == 0:
            return x
        return layers.dropout(x, rate, fold(self.key, *place))


def forward_context(
    tokens: jax.Array,
    positions: jax.Array | None = None,
    segments: jax.Array | None = None,
    key: jax.Array | None = None,
    constrain: Constrain = unconstrained,
) -> Context:
    """Return the context of a forward pass; positions count from 0 in each row if not given."""
    if positions is None:
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    return Context(positions, segments, key, constrain)


def checkpointed(
    call: Any, remat: str, prevent_cse: bool, transform: Callable[..., Any] = jax.checkpoint
) -> Any:
    """Return a layer's call whose backward pass computes again what `remat` says.

    Args:
        call: the function of one layer.
        remat: "none", "full" or "dots", as in DecoderConfig.
        prevent_cse: False inside a scan, whose body cannot be merged with its backward pass: the
            barriers would only cost.
        transform: `jax.checkpoint`, or what a framework has in its place.
    """
    if remat == "none":
        return call
    policies = jax.checkpoint_policies
    policy = policies.dots_with_no_batch_dims_saveable if remat == "dots" else None
    return transform(call, policy=policy, prevent_cse=prevent_cse)


def build_decoder_model(
    config: DecoderConfig, forward: Forward, constrain: Constrain = unconstrained
) -> Model:
    """Return the decoder as pure functions.

    A batch has `tokens` and `targets` [batch, length], and may have `weights` (0 where a target
    does not count), `segments` (equal within a document) and `positions` (within it).

    Args:
        config: its numbers.
        forward: the framework's forward pass.
        constrain: `constrain(x, names)` places an activation by its logical axes.
    """
    infos = decoder_parameters(config)

    def logits(params: Params, batch: Batch, key: jax.Array | None) -> jax.Array:
        tokens = batch["tokens"]
        context = forward_context(
            tokens, batch.get("positions"), batch.get("segments"), key, constrain
        )
        return forward(params, tokens, context)

    def terms(
        params: Params, buffers: Buffers, batch: Batch, key: jax.Array, train: bool
    ) -> tuple[dict[str, Term], Buffers]:
        found = logits(params, batch, key if train else None)
        term = token_cross_entropy(found, batch["targets"], batch.get("weights"))
        return {"cross_entropy": term}, buffers

    return Model(
        init=lambda key: (initialize(config, key), {}),
        terms=terms,
        params=infos,
        logits=lambda params, buffers, batch: logits(params, batch, None),
        vocabulary=config.vocab,
        context=config.context,
        summary=_summary(config),
    )


def _summary(config: DecoderConfig) -> dict[str, str]:
    heads = f"{config.heads} heads of {config.head_dim}"
    shared = f", {config.kv_heads} of keys" if config.kv_heads != config.heads else ""
    return {
        "preset": config.preset,
        "layers": f"{config.layers} of width {config.width}, {heads}{shared}, MLP {config.mlp}",
        "vocabulary": f"{config.vocab:,}",
    }
