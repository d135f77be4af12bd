"""What the tests of checkpoints share."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

# Before jax is imported. A program that several tests need is compiled once.
os.environ["JAX_PLATFORMS"] = "cpu"
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _cache = tempfile.TemporaryDirectory(prefix="trainer-checkpoint-tests-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

# For `checkpointed`, which the processes that a test starts import as well.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def run(tmp_path: Path) -> Any:
    """A run on one device, in a folder of this test."""
    import checkpointed

    return checkpointed.run_in(tmp_path / "run")


@pytest.fixture
def warned(caplog: pytest.LogCaptureFixture) -> Any:
    """A function that returns the warnings so far."""
    return lambda: [
        record.getMessage() for record in caplog.records if record.name == "trainer_core.checkpoint"
    ]
