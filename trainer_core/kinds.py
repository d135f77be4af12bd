"""What a parameter may be, and what an axis of it: the words that plugins agree on."""

from __future__ import annotations

from typing import Literal, get_args

Role = Literal["in", "out", "stack", "other"]
Kind = Literal[
    "matrix",
    "embedding",
    "unembedding",
    "norm",
    "bias",
    "router",
    "conv",
    "position",
    "scalar",
    "other",
]
KINDS: tuple[str, ...] = get_args(Kind)
