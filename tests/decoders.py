"""A small decoder as a recipe, and tokens to train it on: for tests of both frameworks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import programs

from trainer_core import Data, fit, hookimpl, plugin, setting
from trainer_core.loop import Result

FRAMEWORKS = ("nnx", "linen")
SMALL: dict[str, Any] = {
    "vocab": 12,
    "layers": 2,
    "width": 8,
    "heads": 4,
    "kv_heads": 2,
    "head_dim": 4,
    "mlp": 12,
    "dropout": 0.1,
}


@plugin
class Tokens:
    """Random tokens, a pure function of seed and step: two documents a row, ragged weights."""

    batch_size: int = setting(8)

    @hookimpl
    def build_data(self, run: Any) -> Data:
        return _Rows(self.batch_size, run.settings.seed)


class _Rows(Data):
    vocabulary = 12

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed

    def batch(self, step: int) -> dict[str, np.ndarray]:
        return rows(self.count, [self.seed, step])


def rows(count: int, seed: Any = 0) -> dict[str, np.ndarray]:
    """Return a batch for the decoder: two documents of three tokens a row, ragged weights."""
    random = np.random.default_rng(seed)
    tokens = random.integers(0, 12, (count, 7)).astype(np.int32)
    return {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "weights": random.integers(0, 3, (count, 6)).astype(np.float32),
        "segments": np.tile(np.repeat([0, 1], 3).astype(np.int32), (count, 1)),
        "positions": np.tile(np.arange(6, dtype=np.int32) % 3, (count, 1)),
    }


def trained(
    directory: Path,
    framework: str,
    steps: int,
    accept_changes: bool = False,
    **tables: Mapping[str, Any],
) -> Result:
    """Train a small decoder, or go on with it, in a run directory."""
    own: dict[str, Mapping[str, Any]] = {
        "run": {"directory": str(directory), "steps": steps, "eval_every": 0},
        "model": {**SMALL, "use": framework},
        "data": {"use": "decoders:Tokens"},
        "optimizer": {"use": "adamw"},
    }
    tables = {name: {**own.get(name, {}), **tables.get(name, {})} for name in {**own, **tables}}
    return fit(programs.recipe(**tables), accept_changes=accept_changes)
