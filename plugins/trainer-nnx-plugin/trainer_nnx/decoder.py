"""The decoder language model in Flax NNX, and the pure functions that the core trains.

The modules are built from values, not from random streams: `Decoder(config, params)`, with the
parameters of a run or of `trainer_core.decoder_parameters.initialize`, is an ordinary NNX module.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from trainer_core import layers
from trainer_core.decoder import DecoderConfig
from trainer_core.decoder_parameters import decoder_parameters, initialize
from trainer_core.losses import token_cross_entropy
from trainer_core.randomness import fold
from trainer_core.types import Batch, Buffers, Model, ParamInfo, Params, Term
from trainer_nnx.layers import (
    RESIDUAL,
    Block,
    Constrain,
    Context,
    Embed,
    Norm,
    Projection,
    unconstrained,
)


def decoder_model(config: DecoderConfig, constrain: Constrain = unconstrained) -> Model:
    """Return the decoder as pure functions.

    A batch has `tokens` and `targets` [batch, length], and may have `weights` (0 where a target
    does not count), `segments` (equal within a document) and `positions` (within it).

    Args:
        config: its numbers.
        constrain: `constrain(x, names)` places an activation by its logical axes.
    """
    infos = decoder_parameters(config)
    graphdef = _graphdef(config, infos)

    def forward(params: Params, batch: Batch, key: jax.Array | None) -> jax.Array:
        decoder = nnx.merge(graphdef, params)
        logits: jax.Array = decoder(
            batch["tokens"], batch.get("positions"), batch.get("segments"), key, constrain
        )
        return logits

    def terms(
        params: Params, buffers: Buffers, batch: Batch, key: jax.Array, train: bool
    ) -> tuple[dict[str, Term], Buffers]:
        logits = forward(params, batch, key if train else None)
        term = token_cross_entropy(logits, batch["targets"], batch.get("weights"))
        return {"cross_entropy": term}, buffers

    return Model(
        init=lambda key: (initialize(config, key), {}),
        terms=terms,
        params=infos,
        logits=lambda params, buffers, batch: forward(params, batch, None),
        vocabulary=config.vocab,
        context=config.context,
        summary=_summary(config, infos),
    )


def _graphdef(config: DecoderConfig, infos: dict[str, Any]) -> Any:
    def build(key: jax.Array) -> Decoder:
        return Decoder(config, initialize(config, key))

    graphdef, state = nnx.split(nnx.eval_shape(build, jax.random.key(0)))
    # The plugin for Linen has the same paths: a module renamed here must not pass unnoticed.
    built = {"/".join(map(str, path)): leaf.shape for path, leaf in nnx.to_flat_state(state)}
    named = {info.path: info.shape for info in jax.tree.leaves(infos)}
    assert built == named, f"the modules and decoder_parameters disagree: {built} and {named}"
    return graphdef


def _summary(config: DecoderConfig, infos: dict[str, Any]) -> dict[str, str]:
    leaves: list[ParamInfo] = jax.tree.leaves(infos)
    heads = f"{config.heads} heads of {config.head_dim}"
    shared = f", {config.kv_heads} of keys" if config.kv_heads != config.heads else ""
    return {
        "preset": config.preset,
        "parameters": f"{sum(math.prod(info.shape) for info in leaves):,}",
        "layers": f"{config.layers} of width {config.width}, {heads}{shared}, MLP {config.mlp}",
        "vocabulary": f"{config.vocab:,}",
    }


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
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        context = Context(positions, segments, key, constrain)
        x = self.embed(tokens, constrain)
        if key is not None:
            x = layers.dropout(x, self.config.dropout, fold(key, "embed"))
        x = constrain(x, RESIDUAL)
        x = self._scanned(x, context) if self.config.scan else self._unrolled(x, context)
        x = self.final_norm(x)
        if self.unembed is None:
            logits = self.embed.attend(x)
        else:
            logits = self.unembed("ble,ev->blv", x, jnp.float32)
        return constrain(logits, ("batch", "length", "vocab"))

    def _scanned(self, x: jax.Array, context: Context) -> jax.Array:
        graphdef, state = nnx.split(self.layers)

        def body(x: jax.Array, layer: Any) -> tuple[jax.Array, None]:
            index, params = layer
            # Nothing but x leaves the body: parameters returned from it would be stacked again.
            return nnx.merge(graphdef, params)(x, index, context), None

        # A scan's body cannot be merged with its backward pass: the barriers of `prevent_cse`
        # would only cost.
        body = _checkpointed(body, self.config.remat, prevent_cse=False)
        x, _ = jax.lax.scan(body, x, (jnp.arange(self.config.layers), nnx.to_pure_dict(state)))
        return x

    def _unrolled(self, x: jax.Array, context: Context) -> jax.Array:
        for index, block in enumerate(self.layers):
            call = partial(block, index=index, context=context)
            x = _checkpointed(call, self.config.remat, prevent_cse=True)(x)
        return x


def _checkpointed(call: Any, remat: str, prevent_cse: bool) -> Any:
    if remat == "none":
        return call
    policies = jax.checkpoint_policies
    policy = policies.dots_with_no_batch_dims_saveable if remat == "dots" else None
    return jax.checkpoint(call, policy=policy, prevent_cse=prevent_cse)
