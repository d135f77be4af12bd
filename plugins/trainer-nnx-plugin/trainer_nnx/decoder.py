"""The decoder language model in Flax NNX, and the pure functions that the core trains.

The modules are built from values, not from random streams: `Decoder(config, params)`, with the
parameters of a run or of `trainer_core.decoder_parameters.initialize`, is an ordinary NNX module.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from trainer_core.decoder import DecoderConfig
from trainer_core.decoder_model import (
    LOGITS,
    RESIDUAL,
    Context,
    build_decoder_model,
    checkpointed,
    forward_context,
)
from trainer_core.decoder_parameters import decoder_parameters, initialize
from trainer_core.layers import Constrain, unconstrained
from trainer_core.types import Model, Params
from trainer_nnx.layers import Block, Embed, Norm, Projection


def decoder_model(config: DecoderConfig, constrain: Constrain = unconstrained) -> Model:
    """Return the decoder as pure functions; see `trainer_core.decoder_model`.

    Args:
        config: its numbers.
        constrain: `constrain(x, names)` places an activation by its logical axes.
    """
    graphdef = _graphdef(config)

    def forward(params: Params, tokens: jax.Array, context: Context) -> jax.Array:
        logits: jax.Array = nnx.merge(graphdef, params).run(tokens, context)
        return logits

    return build_decoder_model(config, forward, constrain)


def _graphdef(config: DecoderConfig) -> Any:
    def build(key: jax.Array) -> Decoder:
        return Decoder(config, initialize(config, key))

    graphdef, state = nnx.split(nnx.eval_shape(build, jax.random.key(0)))
    # The plugin for Linen has the same paths: a module renamed here must not pass unnoticed.
    built = {"/".join(map(str, path)): leaf.shape for path, leaf in nnx.to_flat_state(state)}
    named = {info.path: info.shape for info in jax.tree.leaves(decoder_parameters(config))}
    assert built == named, f"the modules and decoder_parameters disagree: {built} and {named}"
    return graphdef


class Decoder(nnx.Module):
    """A causal language model: [batch, length] tokens to [batch, length, vocab] logits."""

    def __init__(self, config: DecoderConfig, params: Params) -> None:
        self.config = config
        self.embed = Embed(config, params["embed"])
        if config.scan:
            # One block, whose arrays all have a leading axis of layers.
            self.layers: Any = Block(config, params["layers"])
        else:
            values = params["layers"]
            self.layers = nnx.List([Block(config, values[str(i)]) for i in range(config.layers)])
        self.final_norm = Norm(config, params["final_norm"])
        self.unembed = None if config.tied else Projection(config, params["unembed"])

    def __call__(
        self,
        tokens: jax.Array,
        positions: jax.Array | None = None,
        segments: jax.Array | None = None,
        key: jax.Array | None = None,
        constrain: Constrain = unconstrained,
    ) -> jax.Array:
        """Return float32 logits.

        Args:
            tokens: [batch, length] integers below vocab.
            positions: [batch, length]; None: 0, 1, 2, ... in each row.
            segments: [batch, length], equal within a document; None: one document a row.
            key: of the dropout masks; None: no dropout.
            constrain: places an activation by its logical axes.
        """
        return self.run(tokens, forward_context(tokens, positions, segments, key, constrain))

    def run(self, tokens: jax.Array, context: Context) -> jax.Array:
        """Return float32 logits [batch, length, vocab] for tokens [batch, length]."""
        x = context.dropped(self.embed(tokens, context), self.config.dropout, "embed")
        x = context.constrain(x, RESIDUAL)
        x = self._scanned(x, context) if self.config.scan else self._unrolled(x, context)
        x = self.final_norm(x)
        if self.unembed is None:
            logits = self.embed.attend(x)
        else:
            logits = self.unembed("ble,ev->blv", x, jnp.float32)
        return context.constrain(logits, LOGITS)

    def _scanned(self, x: jax.Array, context: Context) -> jax.Array:
        graphdef, state = nnx.split(self.layers)

        def body(x: jax.Array, layer: Any) -> tuple[jax.Array, None]:
            index, params = layer
            # Nothing but x leaves the body: parameters returned from it would be stacked again.
            return nnx.merge(graphdef, params)(x, index, context), None

        body = checkpointed(body, self.config.remat, prevent_cse=False)
        x, _ = jax.lax.scan(body, x, (jnp.arange(self.config.layers), nnx.to_pure_dict(state)))
        return x

    def _unrolled(self, x: jax.Array, context: Context) -> jax.Array:
        for index, block in enumerate(self.layers):
            call = partial(block, index=index, context=context)
            x = checkpointed(call, self.config.remat, prevent_cse=True)(x)
        return x
