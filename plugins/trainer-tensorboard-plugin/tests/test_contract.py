"""The logger holds to what is asked of every observer."""

from __future__ import annotations

import pytest

from trainer_core.testing import PluginSuite

pytestmark = pytest.mark.contract


class TestTensorBoard(PluginSuite):
    use = "tensorboard"
