"""The decoder's layers as Linen modules; their parameters come from the core, and are only read."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from trainer_core import layers
from trainer_core.decoder import DecoderConfig
from trainer_core.decoder_model import RESIDUAL, Context


class Block(nn.Module):
    """One layer: attention and MLP, each normalised before and added to the residual stream."""

    config: DecoderConfig

    def setup(self) -> None:
        self.attention_norm = Norm(self.config)
        self.attention = Attention(self.config)
        self.mlp_norm = Norm(self.config)
        self.mlp = MLP(self.config)

    def __call__(self, x: jax.Array, index: Any, context: Context) -> jax.Array:
        """Return the residual stream [batch, length, embed] after layer `index`."""
        rate = self.config.dropout
        branch = self.attention(self.attention_norm(x), context)
        x = x + context.dropped(branch, rate, "layers", index, "attention")
        branch = self.mlp(self.mlp_norm(x), context)
        x = x + context.dropped(branch, rate, "layers", index, "mlp")
        return context.constrain(x, RESIDUAL)


class Attention(nn.Module):
    """Causal attention with rotary positions, and fewer key heads than query heads if wanted."""

    config: DecoderConfig

    def setup(self) -> None:
        self.query = Projection(self.config)
        self.key = Projection(self.config)
        self.value = Projection(self.config)
        self.out = Projection(self.config)
        if self.config.qk_norm:
            self.query_norm = Norm(self.config)
            self.key_norm = Norm(self.config)

    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        """Return [batch, length, embed] for the normalised residual stream."""
        theta = self.config.rope_theta
        query = self.query("ble,ehd->blhd", x)  # [batch, length, heads, head_dim]
        key = self.key("ble,ehd->blhd", x)  # [batch, length, kv_heads, head_dim]
        value = self.value("ble,ehd->blhd", x)
        if self.config.qk_norm:
            query, key = self.query_norm(query), self.key_norm(key)
        query = layers.rotary(query, context.positions, theta)
        key = layers.rotary(key, context.positions, theta)
        query = context.constrain(query, ("batch", "length", "heads", "head_dim"))
        key = context.constrain(key, ("batch", "length", "kv_heads", "head_dim"))
        value = context.constrain(value, ("batch", "length", "kv_heads", "head_dim"))
        read = layers.attention(query, key, value, context.segments, self.config.attention)
        projected: jax.Array = self.out("blhd,hde->ble", read)
        return projected


class MLP(nn.Module):
    """SwiGLU."""

    config: DecoderConfig

    def setup(self) -> None:
        self.gate = Projection(self.config)
        self.up = Projection(self.config)
        self.down = Projection(self.config)

    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        """Return [batch, length, embed] for the normalised residual stream."""
        hidden = layers.swiglu(self.gate("ble,em->blm", x), self.up("ble,em->blm", x))
        hidden = context.constrain(hidden, ("batch", "length", "mlp"))
        projected: jax.Array = self.down("blm,me->ble", hidden)
        return projected


class Projection(nn.Module):
    """A kernel without a bias."""

    config: DecoderConfig

    def __call__(self, equation: str, x: jax.Array, to: Any = None) -> jax.Array:
        """Return the einsum of x and the kernel, in the compute dtype or in `to`."""
        kernel = _given(self, "kernel").astype(self.config.compute_dtype)
        return jnp.einsum(equation, x, kernel, preferred_element_type=to)


class Norm(nn.Module):
    """RMSNorm over the last axis."""

    config: DecoderConfig

    def __call__(self, x: jax.Array) -> jax.Array:
        return layers.rms_norm(x, _given(self, "scale"), self.config.norm_epsilon)


class Embed(nn.Module):
    """The vectors of the tokens."""

    config: DecoderConfig

    def __call__(self, tokens: jax.Array, context: Context) -> jax.Array:
        """Return [batch, length, embed] for tokens [batch, length]."""
        # Whole vectors first: otherwise every device would look up the tokens of all of them.
        table = context.constrain(_given(self, "embedding"), ("vocab", None))
        return table[tokens].astype(self.config.compute_dtype)

    def attend(self, x: jax.Array) -> jax.Array:
        """Return float32 logits [batch, length, vocab] for x [batch, length, embed]."""
        kernel = _given(self, "embedding").astype(self.config.compute_dtype)
        return jnp.einsum("ble,ve->blv", x, kernel, preferred_element_type=jnp.float32)


def _given(module: nn.Module, name: str) -> jax.Array:
    """Return a parameter that the decoder was given, or that its `init` has put there."""
    if not module.has_variable("params", name):
        path = "/".join((*module.path, name))
        raise ValueError(
            f"the decoder has no parameter {path}; apply it to the parameters of a run, or of "
            f"trainer_core.decoder_parameters.initialize with an equal config"
        )
    value: jax.Array = jnp.asarray(module.get_variable("params", name))
    return value
