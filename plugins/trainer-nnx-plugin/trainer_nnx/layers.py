"""The decoder's layers as NNX modules: each is built from its values, and holds them as Params."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from trainer_core import layers
from trainer_core.decoder import DecoderConfig
from trainer_core.decoder_model import RESIDUAL, Context
from trainer_core.types import Params


class Block(nnx.Module):
    """One layer: attention and MLP, each normalised before and added to the residual stream."""

    def __init__(self, config: DecoderConfig, params: Params) -> None:
        self.dropout = config.dropout
        self.attention_norm = Norm(config, params["attention_norm"])
        self.attention = Attention(config, params["attention"])
        self.mlp_norm = Norm(config, params["mlp_norm"])
        self.mlp = MLP(config, params["mlp"])

    def __call__(self, x: jax.Array, index: Any, context: Context) -> jax.Array:
        """Return the residual stream [batch, length, embed] after layer `index`."""
        branch = self.attention(self.attention_norm(x), context)
        x = x + context.dropped(branch, self.dropout, "layers", index, "attention")
        branch = self.mlp(self.mlp_norm(x), context)
        x = x + context.dropped(branch, self.dropout, "layers", index, "mlp")
        return context.constrain(x, RESIDUAL)


class Attention(nnx.Module):
    """Causal attention with rotary positions, and fewer key heads than query heads if wanted."""

    def __init__(self, config: DecoderConfig, params: Params) -> None:
        self.theta = config.rope_theta
        self.implementation = config.attention
        self.query = Projection(config, params["query"])
        self.key = Projection(config, params["key"])
        self.value = Projection(config, params["value"])
        self.out = Projection(config, params["out"])
        self.query_norm = Norm(config, params["query_norm"]) if config.qk_norm else None
        self.key_norm = Norm(config, params["key_norm"]) if config.qk_norm else None

    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        """Return [batch, length, embed] for the normalised residual stream."""
        query = self.query("ble,ehd->blhd", x)  # [batch, length, heads, head_dim]
        key = self.key("ble,ehd->blhd", x)  # [batch, length, kv_heads, head_dim]
        value = self.value("ble,ehd->blhd", x)
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        query = layers.rotary(query, context.positions, self.theta)
        key = layers.rotary(key, context.positions, self.theta)
        query = context.constrain(query, ("batch", "length", "heads", "head_dim"))
        key = context.constrain(key, ("batch", "length", "kv_heads", "head_dim"))
        value = context.constrain(value, ("batch", "length", "kv_heads", "head_dim"))
        read = layers.attention(query, key, value, context.segments, self.implementation)
        return self.out("blhd,hde->ble", read)


class MLP(nnx.Module):
    """SwiGLU."""

    def __init__(self, config: DecoderConfig, params: Params) -> None:
        self.gate = Projection(config, params["gate"])
        self.up = Projection(config, params["up"])
        self.down = Projection(config, params["down"])

    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        """Return [batch, length, embed] for the normalised residual stream."""
        hidden = layers.swiglu(self.gate("ble,em->blm", x), self.up("ble,em->blm", x))
        hidden = context.constrain(hidden, ("batch", "length", "mlp"))
        return self.down("blm,me->ble", hidden)


class Projection(nnx.Module):
    """A kernel without a bias."""

    def __init__(self, config: DecoderConfig, params: Params) -> None:
        self.kernel = nnx.Param(params["kernel"])
        self.dtype = config.compute_dtype

    def __call__(self, equation: str, x: jax.Array, to: Any = None) -> jax.Array:
        """Return the einsum of x and the kernel, in the compute dtype or in `to`."""
        kernel = self.kernel[...].astype(self.dtype)
        return jnp.einsum(equation, x, kernel, preferred_element_type=to)


class Norm(nnx.Module):
    """RMSNorm over the last axis."""

    def __init__(self, config: DecoderConfig, params: Params) -> None:
        self.scale = nnx.Param(params["scale"])
        self.epsilon = config.norm_epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        return layers.rms_norm(x, self.scale[...], self.epsilon)


class Embed(nnx.Module):
    """The vectors of the tokens."""

    def __init__(self, config: DecoderConfig, params: Params) -> None:
        self.embedding = nnx.Param(params["embedding"])
        self.dtype = config.compute_dtype

    def __call__(self, tokens: jax.Array, context: Context) -> jax.Array:
        """Return [batch, length, embed] for tokens [batch, length]."""
        # Whole vectors first: otherwise every device would look up the tokens of all of them.
        table = context.constrain(jnp.asarray(self.embedding[...]), ("vocab", None))
        return table[tokens].astype(self.dtype)

    def attend(self, x: jax.Array) -> jax.Array:
        """Return float32 logits [batch, length, vocab] for x [batch, length, embed]."""
        kernel = self.embedding[...].astype(self.dtype)
        return jnp.einsum("ble,ve->blv", x, kernel, preferred_element_type=jnp.float32)
