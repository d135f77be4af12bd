"""A model that mixes Linen and NNX is trained, spread over devices and resumed as any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import pytest
from programs import assert_bitwise_equal, recipe

from trainer_core import Model, fit
from trainer_core.loop import Result

pytest.importorskip("trainer_nnx")
pytest.importorskip("trainer_linen")
pytest.importorskip("trainer_checkpoint")

import bridged
from bridged import InLinen, InNNX
from trainer_linen import as_model as linen_model
from trainer_nnx import as_model as nnx_model

BATCH = bridged.rows()
KERNELS = {"InNNX": "block/Dense_0/kernel", "InLinen": "block/layers/0/kernel"}
MIXED = list(KERNELS)


def model_of(mixed: str) -> Model:
    return nnx_model(InNNX) if mixed == "InNNX" else linen_model(InLinen(), BATCH)


def infos_of(tree: Any) -> dict[str, Any]:
    return {info.path: info for info in jax.tree.leaves(tree)}


def at(tree: Any, path: str) -> Any:
    for key in path.split("/"):
        tree = tree[key]
    return tree


def trained(directory: Path, mixed: str, steps: int, **tables: Any) -> Result:
    framework = "nnx-module" if mixed == "InNNX" else "linen-module"
    config = recipe(
        run={"directory": str(directory), "steps": steps},
        model={
            "use": framework,
            "module": f"bridged:{mixed}",
            "coefficients": {"size": 0.01},
        },
        data={"use": "bridged:Rows"},
        schedule={"learning_rate": 0.03},
        accumulate={"microbatches": 2},
        checkpoint={"use": "orbax", "every": 3},
        **tables,
    )
    return fit(config)


@pytest.mark.parametrize("mixed", MIXED)
def test_a_mixed_model_that_was_stopped_goes_on_as_if_it_had_not_been(
    mixed: str, tmp_path: Path, quick_compiles: None
) -> None:
    unbroken = trained(tmp_path / "unbroken", mixed, 6)
    trained(tmp_path / "run", mixed, 3)
    result = trained(tmp_path / "run", mixed, 6)
    assert_bitwise_equal(result.state, unbroken.state)
    assert {"loss/loss", "loss/size"} <= set(result.metrics)


@pytest.mark.eight_devices
@pytest.mark.parametrize("mixed", MIXED)
def test_a_mixed_model_is_spread_by_the_names_in_its_blocks_and_goes_on_so(
    mixed: str, tmp_path: Path, quick_compiles: None
) -> None:
    shard = {"mesh": {"data": 2, "tensor": 4}, "rules": {"mlp": "tensor", "embed": "data"}}
    unbroken = trained(tmp_path / "unbroken", mixed, 6, shard=shard)
    trained(tmp_path / "run", mixed, 3, shard=shard)
    result = trained(tmp_path / "run", mixed, 6, shard=shard)
    assert_bitwise_equal(result.state, unbroken.state)
    kernel = at(result.state.params, KERNELS[mixed])
    assert kernel.sharding.spec == jax.sharding.PartitionSpec("data", "tensor")
