"""The decoder language model in Flax Linen, and the pure functions that the core trains.

`Decoder(config).apply({"params": params}, tokens)`, with the parameters of a run or of
`trainer_core.decoder_parameters.initialize`, is an ordinary Linen module.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from trainer_core.decoder import DecoderConfig
from trainer_core.decoder_model import (
    LOGITS,
    RESIDUAL,
    Context,
    build_decoder_model,
    checkpointed,
    forward_context,
)
from trainer_core.decoder_parameters import initialize
from trainer_core.layers import Constrain, unconstrained
from trainer_core.types import Model, Params
from trainer_linen.layers import Block, Embed, Norm, Projection


def decoder_model(config: DecoderConfig, constrain: Constrain = unconstrained) -> Model:
    """Return the decoder as pure functions; see `trainer_core.decoder_model`.

    Args:
        config: its numbers.
        constrain: `constrain(x, names)` places an activation by its logical axes.
    """
    decoder = Decoder(config)

    def forward(params: Params, tokens: jax.Array, context: Context) -> jax.Array:
        logits: Any = decoder.apply({"params": params}, tokens, context, method="run")
        return jnp.asarray(logits)

    return build_decoder_model(config, forward, constrain)


class Decoder(nn.Module):
    """A causal language model: [batch, length] tokens to [batch, length, vocab] logits.

    `init` gives the first parameters of `trainer_core.decoder_parameters.initialize`.
    """

    config: DecoderConfig

    def setup(self) -> None:
        if self.is_initializing():
            for name, values in initialize(self.config, self.make_rng("params")).items():
                self.put_variable("params", name, values)
        self.embed = Embed(self.config)
        # One block, whose arrays all have a leading axis of layers; or one for each layer.
        self.layers: Any = (Block if self.config.scan else Layers)(self.config)
        self.final_norm = Norm(self.config)
        if not self.config.tied:
            self.unembed = Projection(self.config)

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
        x = self._scanned(x, context) if self.config.scan else self.layers(x, context)
        x = self.final_norm(x)
        if self.config.tied:
            logits = self.embed.attend(x)
        else:
            logits = self.unembed("ble,ev->blv", x, jnp.float32)
        return context.constrain(logits, LOGITS)

    def _scanned(self, x: jax.Array, context: Context) -> jax.Array:
        def body(block: Block, x: jax.Array, index: jax.Array) -> tuple[jax.Array, None]:
            return block(x, index, context), None

        body = checkpointed(body, self.config.remat, prevent_cse=False, transform=nn.remat)
        scan = nn.scan(
            body,
            variable_axes={"params": 0},
            length=self.config.layers,
            check_constancy_invariants=False,
        )
        x, _ = scan(self.layers, x, jnp.arange(self.config.layers))
        return x


class Layers(nn.Module):
    """Unrolled layers: a block for each, called by its number."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        """Return the residual stream [batch, length, embed] after all layers."""
        for index in range(self.config.layers):

            def call(block: Block, x: jax.Array, index: int = index) -> jax.Array:
                return block(x, index, context)

            call = checkpointed(call, self.config.remat, prevent_cse=True, transform=nn.remat)
            x = call(Block(self.config, name=str(index)), x)
        return x
