"""The decoder's mathematics as pure functions, shared by every framework it is written in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp

from trainer_core.errors import UserError, first_line

Constrain: TypeAlias = Callable[[jax.Array, tuple[str | None, ...]], jax.Array]


def unconstrained(x: jax.Array, names: tuple[str | None, ...]) -> jax.Array:
    """Return x as it is: the `constrain` of a model on one device."""
    return x


def rms_norm(x: jax.Array, scale: jax.Array, epsilon: float) -> jax.Array:
    """Return `x / sqrt(mean(x²) + epsilon) * scale`, computed in float32, in the dtype of x.

    Args:
        x: [..., width].
        scale: [width].
        epsilon: keeps the division finite.

    Source: Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019, equation 4.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    # Not jnp.square: its derivative would keep 2 x for the backward pass, beside x.
    mean_square = jnp.mean(wide * wide, axis=-1, keepdims=True)  # [..., 1]
    return (wide * jax.lax.rsqrt(mean_square + epsilon) * scale).astype(x.dtype)


def rotary(x: jax.Array, positions: jax.Array, theta: float) -> jax.Array:
    """Turn each pair of channels by an angle that grows with the position.

    Pair i of a head consists of channels i and head_dim / 2 + i, and turns by
    `position * theta ** (-2 i / head_dim)` radians, so that a query's product with a key depends
    on the distance between them alone.

    Args:
        x: [batch, length, heads, head_dim].
        positions: [batch, length] integers.
        theta: the longest wavelength is about 2 pi theta positions.

    Source: Su et al., "RoFormer", 2021, equation 34; halves instead of neighbours, as in Llama.
    """
    half = x.shape[-1] // 2
    wide = jnp.promote_types(x.dtype, jnp.float32)
    frequencies = theta ** (-jnp.arange(half, dtype=wide) / half)  # [head_dim / 2]
    angles = positions[..., None, None].astype(wide) * frequencies  # [batch, length, 1, half]
    sine, cosine = jnp.sin(angles), jnp.cos(angles)
    first, second = jnp.split(x.astype(wide), 2, axis=-1)
    turned = [first * cosine - second * sine, second * cosine + first * sine]
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segments: jax.Array | None = None,
    implementation: str = "auto",
) -> jax.Array:
    """Return causal attention: each token reads itself and earlier tokens of its own segment.

    Args:
        query: [batch, length, heads, head_dim].
        key, value: [batch, length, kv_heads, head_dim]; each head serves a group of query heads.
        segments: [batch, length] integers, equal within a document; None: one document.
        implementation: of `jax.nn.dot_product_attention`; "auto": what JAX thinks best.

    Returns:
        [batch, length, heads, head_dim], in the dtype of the query.

    Raises:
        UserError: cuDNN is asked for and not there, or does not take these arrays.
    """
    mask = None
    if segments is not None:
        mask = (segments[:, :, None] == segments[:, None, :])[:, None]  # [batch, 1, length, length]
    named: Any = {"auto": None}.get(implementation, implementation)
    chosen: Literal["xla", "cudnn"] | None = named
    try:
        return jax.nn.dot_product_attention(
            query, key, value, mask=mask, is_causal=True, implementation=chosen
        )
    except (RuntimeError, ValueError, NotImplementedError) as error:
        if implementation != "cudnn":
            raise
        said = first_line(error).rstrip(".")
        raise UserError(
            f'[model] attention = "cudnn": JAX raised {said}; set "auto" or "xla"',
            "model.attention",
        ) from error


def swiglu(gate: jax.Array, up: jax.Array) -> jax.Array:
    """Return `gate * sigmoid(gate) * up`, of equal shapes.

    Source: Shazeer, "GLU Variants Improve Transformer", 2020, equation 6.
    """
    return jax.nn.silu(gate) * up


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Return x with a share `rate` of its values set to 0 and the others divided by 1 - rate.

    Args:
        x: any shape.
        rate: at least 0, below 1.
        key: of this place and step; the mask depends on nothing else. None: x as it is.
    """
    if key is None or rate == 0:
        return x
    kept = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(kept, x / (1.0 - rate), jnp.zeros_like(x))
