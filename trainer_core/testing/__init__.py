"""Conformance suites: a plugin's test is a subclass of one, which names the plugin.

    from trainer_core.testing import OptimizerSuite

    class TestLion(OptimizerSuite):
        use = "lion"

They run with pytest; those tests that need several devices start a process that simulates eight.
"""

from __future__ import annotations

from trainer_core.testing.checkpoint import CheckpointSuite
from trainer_core.testing.data import DataSuite
from trainer_core.testing.model import ModelSuite
from trainer_core.testing.optimizer import OptimizerSuite
from trainer_core.testing.plugin import PluginSuite

__all__ = ["CheckpointSuite", "DataSuite", "ModelSuite", "OptimizerSuite", "PluginSuite"]
