"""The decoder's parameters: paths, shapes, axes and first values, the same in every framework."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import attrs
import jax
import jax.numpy as jnp

from trainer_core.decoder import DecoderConfig
from trainer_core.kinds import Kind
from trainer_core.randomness import fold_each, key_after
from trainer_core.types import Axis, ParamInfo, Params

# In older ones XLA for CPUs rounds the values otherwise on a mesh, where they are looked at, too.
_IN_TURN = jax.__version_info__ >= (0, 10)
_VOCAB_IN, _VOCAB_OUT = Axis("vocab", "in"), Axis("vocab", "out")
_EMBED_IN, _EMBED_OUT = Axis("embed", "in"), Axis("embed", "out")
_MLP_IN, _MLP_OUT = Axis("mlp", "in"), Axis("mlp", "out")


@attrs.frozen
class _Weight:
    """One array, the layers stacked; `std` is None where it begins as ones."""

    path: str
    shape: tuple[int, ...]
    axes: tuple[Axis, ...]
    kind: Kind
    std: float | None

    @property
    def stacked(self) -> bool:
        return self.axes[0].role == "stack"

    def stack(self, layers: int) -> _Weight:
        return attrs.evolve(
            self,
            path=f"layers/{self.path}",
            shape=(layers, *self.shape),
            axes=(Axis("layers", "stack"), *self.axes),
        )


def decoder_parameters(config: DecoderConfig) -> dict[str, Any]:
    """Return a ParamInfo for each parameter, in the nested dict that holds the parameters.

    Scanned layers are one array with a leading axis (`layers/attention/query/kernel`), unrolled
    ones an array each (`layers/0/attention/query/kernel`).
    """
    dtype = jnp.dtype(config.param_dtype)
    infos = []
    for weight in _weights(config):
        info = ParamInfo(weight.path, weight.shape, dtype, weight.axes, weight.kind)
        if weight.stacked and not config.scan:
            each = attrs.evolve(info, shape=info.shape[1:], axes=info.axes[1:])
            infos += [attrs.evolve(each, path=path) for path in _layer_paths(config, weight)]
        else:
            infos.append(info)
    return _nest((info.path, info) for info in infos)


def initialize(config: DecoderConfig, key: jax.Array) -> Params:
    """Return the first parameters, in the tree of `decoder_parameters`.

    Matrices are normal with variance 1 / fan_in, those that write to the residual stream
    divided by 2 layers besides (Radford et al., GPT-2, 2019, section 2.3); embeddings with
    variance 1 / width, so that the first logits have variance 1, tied or not; norms are ones. Each
    value depends on the key, its path and its place in the stack of layers alone: scanned and
    unrolled layers begin equal, and so do all frameworks and all shardings.
    """
    weights = _weights(config)
    keys = fold_each(key, [weight.path for weight in weights])
    leaves: list[tuple[str, jax.Array]] = []
    drawn: jax.Array | None = None
    for weight, own_key in zip(weights, keys, strict=True):
        if weight.std is None:
            value = jnp.ones(weight.shape, config.param_dtype)
        else:
            # One after the other: the bits of all at once would take several times the values.
            if drawn is not None and _IN_TURN:
                own_key = key_after(own_key, drawn)
            normal = jax.random.normal(own_key, weight.shape, jnp.float32) * weight.std
            value = drawn = normal.astype(config.param_dtype)
        if weight.stacked and not config.scan:
            leaves.extend(zip(_layer_paths(config, weight), value, strict=True))
        else:
            leaves.append((weight.path, value))
    return _nest(leaves)


def _layer_paths(config: DecoderConfig, weight: _Weight) -> list[str]:
    within = weight.path.removeprefix("layers/")
    return [f"layers/{layer}/{within}" for layer in range(config.layers)]


def _weights(config: DecoderConfig) -> list[_Weight]:
    return [*_outer(config), *(weight.stack(config.layers) for weight in _block(config))]


def _outer(config: DecoderConfig) -> list[_Weight]:
    vocab, width = config.vocab, config.width
    # Not the fixed 0.02 of GPT-2: a narrow model's first branches would drown such embeddings.
    std = 1 / math.sqrt(width)
    embedding = _Weight(
        "embed/embedding", (vocab, width), (_VOCAB_IN, _EMBED_OUT), "embedding", std
    )
    weights = [embedding, _norm("final_norm", width)]
    if not config.tied:
        axes = (_EMBED_IN, _VOCAB_OUT)
        weights.append(_Weight("unembed/kernel", (width, vocab), axes, "unembedding", std))
    return weights


def _block(config: DecoderConfig) -> list[_Weight]:
    width, heads, kv_heads, head_dim = (
        config.width,
        config.heads,
        config.kv_heads,
        config.head_dim,
    )
    to_heads = (_EMBED_IN, Axis("heads", "out"), Axis("head_dim", "out"))
    to_kv_heads = (_EMBED_IN, Axis("kv_heads", "out"), Axis("head_dim", "out"))
    from_heads = (Axis("heads", "in"), Axis("head_dim", "in"), _EMBED_OUT)
    residual = 1 / math.sqrt(2 * config.layers)

    def matrix(path: str, axes: tuple[Axis, ...], *shape: int, scale: float = 1.0) -> _Weight:
        fan_in = math.prod(n for n, axis in zip(shape, axes, strict=True) if axis.role == "in")
        return _Weight(f"{path}/kernel", shape, axes, "matrix", scale / math.sqrt(fan_in))

    norms = ["query_norm", "key_norm"] if config.qk_norm else []
    return [
        _norm("attention_norm", width),
        matrix("attention/query", to_heads, width, heads, head_dim),
        matrix("attention/key", to_kv_heads, width, kv_heads, head_dim),
        matrix("attention/value", to_kv_heads, width, kv_heads, head_dim),
        *(_norm(f"attention/{name}", head_dim) for name in norms),
        matrix("attention/out", from_heads, heads, head_dim, width, scale=residual),
        _norm("mlp_norm", width),
        matrix("mlp/gate", (_EMBED_IN, _MLP_OUT), width, config.mlp),
        matrix("mlp/up", (_EMBED_IN, _MLP_OUT), width, config.mlp),
        matrix("mlp/down", (_MLP_IN, _EMBED_OUT), config.mlp, width, scale=residual),
    ]


def _norm(path: str, size: int) -> _Weight:
    return _Weight(f"{path}/scale", (size,), (Axis("norm", "other"),), "norm", None)


def _nest(leaves: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, leaf in leaves:
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree
