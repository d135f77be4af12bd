"""Muon holds to what is asked of every optimizer."""

from __future__ import annotations

import pytest

from trainer_core.testing import OptimizerSuite

pytestmark = pytest.mark.contract


class TestMuon(OptimizerSuite):
    use = "muon"


class TestNorMuon(OptimizerSuite):
    use = "muon"
    settings = {"normuon": True}
