"""The core's own plugins hold to what is asked of everyone's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from trainer_core.testing import DataSuite, ModelSuite, OptimizerSuite, PluginSuite, data

pytestmark = pytest.mark.contract


class TestAdamW(OptimizerSuite):
    use = "adamw"


class TestSGD(OptimizerSuite):
    use = "sgd"


class TestOptax(OptimizerSuite):
    use = "optax"
    settings = {"transform": "optax:lion"}


class TestText(DataSuite):
    use = "text"


class TestTextOfAFile(DataSuite):
    """Small enough to see all of it: of 64 tokens each, and one byte that is only a target."""

    use = "text"
    settings = {"path": data.__file__, "length": 64, "batch_size": 8, "held_out": 0.1}

    @classmethod
    def examples(cls) -> list[dict[str, Any]]:
        text = np.fromfile(data.__file__, np.uint8)
        windows = (len(text) - 2) // 64
        starts = range(0, 64 * (windows - round(windows * 0.1)), 64)
        return [
            {
                "tokens": text[at : at + 64],
                "targets": text[at + 1 : at + 65],
                "weights": np.ones(64),
            }
            for at in starts
        ]


class TestJsonLines(PluginSuite):
    use = "jsonl"


class TestProgress(PluginSuite):
    use = "progress"


class TestPerceptron(ModelSuite):
    """Terms of several weights, a mean of a microbatch, and a buffer."""

    use = "trainer_core.testing.small:Perceptron"
    settings = {"terms": ["squares", "sizes", "penalty"], "dropout": 0.1}
    tables = {"data": {"use": "trainer_core.testing.small:Examples"}}
    per_microbatch = ("penalty",)


class TestExamples(DataSuite):
    use = "trainer_core.testing.small:Examples"
