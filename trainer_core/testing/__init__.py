"""Conformance suites: a plugin's test is a subclass of one, which names the plugin.

    from trainer_core.testing import OptimizerSuite

    class TestLion(OptimizerSuite):
        use = "lion"

They run with pytest; those tests that need several devices start a process that simulates eight.
"""

from __future__ import annotations

from trainer_core.testing.optimizer import OptimizerSuite

__all__ = ["OptimizerSuite"]
