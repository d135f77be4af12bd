"""What the README shows is true: its files train, its Python runs."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from trainer_core import fit
from trainer_core.decoder import DecoderConfig
from trainer_core.decoder_parameters import decoder_parameters

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the README's files in it."""
    for _, text in BLOCKS:
        named = re.match(r"# file: (.*)\n", text)
        if named:
            (tmp_path / named[1]).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return tmp_path


def test_the_module_trains_by_its_recipe(folder: Path) -> None:
    result = fit("small.toml", ["plugins.progress=false", "checkpoint.use=none"])
    assert result.metrics["loss"] < 5.5
    assert {"loss/cross_entropy", "loss/size"} <= set(result.metrics)
    assert len((folder / "small.py").read_text().splitlines()) - 1 <= 30


def test_every_other_block_runs() -> None:
    params = jax.tree.map(
        lambda info: np.zeros(info.shape, info.dtype),
        decoder_parameters(DecoderConfig(preset="tiny")),
    )
    namespace: dict[str, Any] = {
        "state": SimpleNamespace(params=params),
        "tokens": np.zeros((1, 8), np.int32),
        "images": {"pixels": np.zeros((4, 64), np.float32), "labels": np.zeros(4, np.int32)},
    }
    for language, text in BLOCKS:
        if language == "python" and not text.startswith("# file: "):
            exec(text, namespace)
    assert namespace["logits"].shape == (1, 8, 256)
    assert namespace["model"].params["kernel"].shape == (64, 10)
