"""Parameters of a small block: heads, grouped heads, a feed-forward, norms, an embedding."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from trainer_muon import Description, describe

WIDTH, HEADS, KV_HEADS, HEAD_DIM, MLP, LAYERS = 8, 4, 2, 2, 24, 3

LAYER: dict[str, tuple[tuple[int, ...], Description]] = {
    "query": ((WIDTH, HEADS, HEAD_DIM), Description("embed:in heads:out head_dim:out")),
    "key": ((WIDTH, KV_HEADS, HEAD_DIM), Description("embed:in kv_heads:out head_dim:out")),
    "out": ((HEADS, HEAD_DIM, WIDTH), Description("heads:in head_dim:in embed:out")),
    "up": ((WIDTH, MLP), Description("embed:in mlp:out")),
    "down": ((MLP, WIDTH), Description("mlp:in embed:out")),
    "norm": ((WIDTH,), Description("norm:other", "norm")),
}
OUTER: dict[str, tuple[tuple[int, ...], Description]] = {
    "embedding": ((16, WIDTH), Description("vocab:in embed:out", "embedding")),
    "bias": ((WIDTH,), Description("embed:out", "bias")),
}


def random(shape: Any, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def stacked(seed: int = 0) -> tuple[Any, Any]:
    """Return arrays and their infos, the layers along the first axis."""
    arrays: dict[str, Any] = {}
    rules = {}
    for number, (name, (shape, description)) in enumerate(LAYER.items()):
        arrays[name] = random((LAYERS, *shape), seed + number)
        rules[f"layers/{name}"] = Description(f"layers:stack {description.axes}", description.kind)
    tree = {"layers": arrays, **_outer(seed)}
    return tree, describe(tree, rules | {name: each for name, (_, each) in OUTER.items()})


def unstacked(seed: int = 0) -> tuple[Any, Any]:
    """Return the same arrays, a list of layers."""
    tree, _ = stacked(seed)
    layers = [jax.tree.map(lambda x, at=at: x[at], tree["layers"]) for at in range(LAYERS)]
    rules = {f"layers/*/{name}": each for name, (_, each) in LAYER.items()}
    tree = tree | {"layers": layers}
    return tree, describe(tree, rules | {name: each for name, (_, each) in OUTER.items()})


def _outer(seed: int) -> dict[str, np.ndarray]:
    return {name: random(shape, seed + 90 + len(shape)) for name, (shape, _) in OUTER.items()}
