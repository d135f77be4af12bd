"""Small decoders, each compiled once a session, and batches for them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import attrs
import jax
import numpy as np
import pytest
from trainer_nnx.decoder import decoder_model

from trainer_core.decoder import DecoderConfig
from trainer_core.loss import build_loss
from trainer_core.types import Model, ParamInfo

SMALL: dict[str, Any] = {
    "vocab": 11,
    "layers": 2,
    "width": 8,
    "heads": 4,
    "kv_heads": 2,
    "head_dim": 4,
    "mlp": 12,
    "qk_norm": False,
}


@attrs.frozen
class Compiled:
    """A small decoder: its model, some parameters, and compiled functions."""

    config: DecoderConfig
    model: Model
    params: dict[str, Any]
    logits: Callable[..., Any]  # (params, batch)
    loss: Callable[..., Any]  # (params, batch, key), in training
    gradient: Callable[..., Any]  # (params, batch, key): (loss, grads)


@functools.cache
def compiled_decoder(**changes: Any) -> Compiled:
    config = DecoderConfig(**(SMALL | changes))
    model = decoder_model(config)
    loss = build_loss(model)

    def loss_of(params: Any, batch: Any, key: Any) -> Any:
        return loss(params, {}, batch, key)[0]

    return Compiled(
        config=config,
        model=model,
        params=_some_params(model),
        logits=jax.jit(lambda params, batch: model.logits(params, {}, batch)),
        loss=jax.jit(loss_of),
        gradient=jax.jit(jax.value_and_grad(loss_of)),
    )


def _some_params(model: Model) -> Any:
    """Parameters by path: large enough that no layer is nearly linear, equal where paths are.

    Unrolled layers get the slices of what the scanned ones get.
    """

    def draw(info: ParamInfo) -> np.ndarray:
        parts = info.path.split("/")
        layer = int(parts.pop(1)) if parts[1].isdigit() else None
        random = np.random.default_rng([len("/".join(parts)), *"/".join(parts).encode()])
        shape = info.shape if layer is None else (layer + 1, *info.shape)
        array = 0.4 * random.standard_normal(shape) + (info.kind == "norm")
        return array.astype(np.float32) if layer is None else array[layer].astype(np.float32)

    return jax.tree.map(draw, model.params)


@pytest.fixture(scope="session")
def decoder() -> Callable[..., Compiled]:
    """Return a small decoder by what differs in its config, compiled once a session."""
    return compiled_decoder


@pytest.fixture(scope="session")
def batch() -> dict[str, np.ndarray]:
    """Three rows of ten tokens, one document each, with ragged weights."""
    random = np.random.default_rng(3)
    tokens = random.integers(0, 11, (3, 11)).astype(np.int32)
    weights = random.uniform(0.2, 1.5, (3, 10)).astype(np.float32)
    weights[1, 5:] = 0
    weights[2] = 0
    return {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "weights": weights,
        "segments": np.zeros((3, 10), np.int32),
        "positions": np.tile(np.arange(10, dtype=np.int32), (3, 1)),
    }


@pytest.fixture(scope="session")
def packed(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same rows, each of two documents: of four tokens and of six."""
    segments = np.repeat([[0] * 4 + [1] * 6], 3, axis=0).astype(np.int32)
    positions = np.repeat([[*range(4), *range(6)]], 3, axis=0).astype(np.int32)
    return batch | {"segments": segments, "positions": positions}
