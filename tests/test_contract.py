"""The core's own plugins hold to what is asked of everyone's."""

from __future__ import annotations

import pytest

from trainer_core.testing import DataSuite, ModelSuite, OptimizerSuite, PluginSuite

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
