"""`trainer plan` for TPUs that are not there: libtpu compiles, and refuses, as it does on them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import jax
import pytest

from trainer_core.cli import run

pytest.importorskip("libtpu", reason="needs trainer-core[plan-tpu]")
pytest.importorskip("trainer_nnx")

pytestmark = pytest.mark.long

# Dimensions of whole tiles, 8 x 128, in all that is large: what XLA pads is then little.
DECODER = ["model.width=256", "model.heads=2", "model.kv_heads=2", "model.head_dim=128"]
DECODER += ["model.mlp=512", "model.layers=2", "data.length=128", "checkpoint.use=none"]

Planned = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def planned(capsys: pytest.CaptureFixture[str]) -> Iterator[Planned]:
    """Return the exit code and the JSON of a plan; what it sets for libtpu is taken back."""

    def plan(topology: str, *settings: str) -> tuple[int, dict[str, Any]]:
        code = run(["plan", *DECODER, *settings, "--topology", topology, "--json"])
        return code, json.loads(capsys.readouterr().out)

    cached = jax.config.jax_enable_compilation_cache
    with mock.patch.dict(os.environ):
        yield plan
    jax.config.update("jax_enable_compilation_cache", cached)


def test_a_step_is_compiled_for_tpus(planned: Planned) -> None:
    code, plan = planned("v5e:2x2", "shard.mesh={fsdp=2,tensor=2}")
    assert code == 0
    assert (plan["fits"], plan["device"], plan["devices"]) == (True, "TPU v5 lite", 4)
    memory, xla = plan["memory"], plan["xla_memory"]
    assert memory["total"] == pytest.approx(xla["total"], rel=0.03)
    # The norms, 256 floats in two layers, and scalars are padded to tiles.
    counted = sum(memory[each] for each in ("parameters", "optimizer", "step", "batch"))
    assert counted <= xla["arguments"] < 1.02 * counted
    assert xla["outputs"] - xla["aliased"] < 16 * 1024
    assert {"all-gather", "all-reduce"} & set(plan["collectives"])
    assert plan["collectives_not_counted"] == []
    assert plan["roofline"]["interconnect_seconds"] > 0 == plan["roofline"]["network_seconds"]


def test_what_crosses_slices_goes_through_the_network(planned: Planned) -> None:
    code, plan = planned("2xv5e:2x2", "shard.mesh={data=2,fsdp=4}", "shard.dcn={data=2}")
    assert code == 0
    between = plan["collectives"]["all-reduce between slices"]
    # Gradients of each shard, in float32, once: nothing else is large.
    assert between["bytes"] == pytest.approx(plan["memory"]["gradients"], rel=0.1)
    assert plan["roofline"]["network_seconds"] == between["sent_bytes"] / (25e9 / 8)


def test_what_does_not_fit_a_tpu_is_refused_by_its_compiler(planned: Planned) -> None:
    code, plan = planned("v5e:1x1", "data.batch_size=65536")
    assert code == 1
    assert plan["fits"] is False
    assert plan["refused"].startswith("Ran out of memory on HBM")
    assert plan["memory"]["total"] > plan["available_bytes"]
    assert plan["xla_memory"] is None
    assert plan["compile_seconds"] < 60
    assert plan["knobs"]
