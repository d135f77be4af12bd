"""Orbax checkpoints hold to what is asked of every backend."""

from __future__ import annotations

import pytest

from trainer_core.testing import CheckpointSuite

pytestmark = pytest.mark.contract


class TestOrbax(CheckpointSuite):
    use = "orbax"
