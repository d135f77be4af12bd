"""The models of this package hold to what is asked of everyone's."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from trainer_core.testing import ModelSuite

# The recipe names a module beside this file, and pytest touches no path.
sys.path.insert(0, str(Path(__file__).parent))

pytestmark = pytest.mark.contract


class TestDecoder(ModelSuite):
    use = "nnx"
    settings = {
        "layers": 2,
        "width": 8,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 4,
        "mlp": 16,
        "vocab": 64,
    }
    mesh = {"fsdp": 4, "tensor": 2}
    unrolled = {"scan": False}


class TestOwnModule(ModelSuite):
    use = "nnx-module"
    settings = {"module": "owned_nnx:Normalised"}
