"""A module of one's own in a whole run: what it holds is saved, and a stop changes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from trainer_core import fit

SOURCE = """
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from trainer_core import Data, Term, cross_entropy, hookimpl, plugin


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(use_running_average=not train)(x)
        x = nn.Dropout(0.5, deterministic=not train)(nn.relu(nn.Dense(8)(x)))
        self.sow("losses", "size", Term(jnp.sum(x**2), float(len(x))))
        return nn.Dense(3)(x)

    def terms(self, batch, train):
        return {"loss": cross_entropy(self(batch["x"], train), batch["labels"], batch["weights"])}


class Rows(Data):
    held_out_batches = 1

    def batch(self, step):
        random = np.random.default_rng(step)
        return {
            "x": random.normal(size=(8, 4)).astype(np.float32),
            "labels": random.integers(0, 3, 8).astype(np.int32),
            "weights": random.integers(0, 3, 8).astype(np.float32),
        }

    def held_out(self, index):
        return self.batch(1000 + index)


@plugin
class Source:
    batch_size: int = 8

    @hookimpl
    def build_data(self):
        return Rows()
"""


@pytest.fixture(autouse=True)
def module_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "linen_resumed.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)


def run(directory: Path, steps: int) -> Any:
    return fit(
        {
            "run": {"directory": str(directory), "steps": steps},
            "model": {
                "use": "linen-module",
                "module": "linen_resumed:Net",
                "coefficients": {"size": 0.1},
            },
            "data": {"use": "linen_resumed:Source"},
            "schedule": {"use": "constant", "learning_rate": 0.01, "warmup": 0},
            "accumulate": {"microbatches": 2},
            "plugins": {"progress": False},
        }
    )


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", 4).state
    run(tmp_path / "stopped", 2)
    resumed = run(tmp_path / "stopped", 4).state
    for found, expected in (
        (resumed.params, whole.params),
        (resumed.buffers, whole.buffers),
        (resumed.opt_state, whole.opt_state),
    ):
        assert jax.tree.structure(found) == jax.tree.structure(expected)
        assert jax.tree.all(jax.tree.map(np.array_equal, found, expected))
    assert set(whole.buffers) == {"BatchNorm_0"}
    assert np.any(whole.buffers["BatchNorm_0"]["mean"] != 0)
    last = json.loads((tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"loss/loss", "loss/size", "eval_loss"} <= set(last)
    total = last["loss/loss"] + 0.1 * last["loss/size"]
    assert last["loss"] == pytest.approx(total, rel=1e-6)
