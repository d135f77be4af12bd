"""A run that began in one framework goes on in the other, through a checkpoint, as if unbroken."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import decoders
import jax
import pytest
import twins
from decoders import FRAMEWORKS
from programs import assert_bitwise_equal

from trainer_core import UserError
from trainer_core.loop import Result
from trainer_core.types import TrainState

pytest.importorskip("trainer_nnx")
pytest.importorskip("trainer_linen")
pytest.importorskip("trainer_checkpoint")

pytestmark = [pytest.mark.usefixtures("quick_compiles"), pytest.mark.aside]

WHOLE = 6
SAVING = {"use": "orbax", "every": 2, "keep": 3}
# A state of its own, and the same whatever step a run is stopped at.
SCHEDULE = {"use": "cosine", "learning_rate": 0.05, "warmup": 2}

# By the state that each has; adamw is that of the decoders. Functions are in tests/optimizers.py.
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd with momentum": {"use": "sgd"},
    "lion": {"use": "optax", "transform": "optax:lion"},
    "adafactor": {
        "use": "optax",
        "transform": "optax:adafactor",
        "arguments": {"min_dim_size_to_factor": 4},  # otherwise it factors nothing so small
    },
    "a chain with clipping": {"use": "optax", "transform": "optimizers:clipped"},
    "masked weight decay": {"use": "optax", "transform": "optimizers:masked_decay"},
    "a partition": {"use": "optax", "transform": "optimizers:partitioned"},
    "injected hyperparameters": {"use": "optax", "transform": "optimizers:injected"},
    "muon": {"use": "muon"},
}


def there_and_back(
    train: Callable[..., Result], directory: Path, home: str, **tables: Any
) -> TrainState:
    """Train at home; then again from the first checkpoint: abroad for a while, the rest at home.

    Returns the state at the end, after a look that it is the same both times.
    """
    tables = {"schedule": SCHEDULE, "checkpoint": SAVING, **tables}
    abroad = next(each for each in FRAMEWORKS if each != home)
    stopping = {"stop": {"use": "models:StopAfter", "step": 3}}
    unbroken = train(directory, home, WHOLE, **tables).state
    for later in ("4", "6"):
        shutil.rmtree(directory / "checkpoints" / later)
    gone = train(directory, abroad, WHOLE, accept_changes=True, plugins=stopping, **tables)
    back = train(directory, home, WHOLE, accept_changes=True, **tables)
    assert (gone.resumed_from, back.resumed_from, back.step) == (2, 4, WHOLE)
    assert_bitwise_equal(back.state, unbroken)
    return back.state


@pytest.mark.parametrize(
    ("home", "model"),
    [
        ("nnx", {"scan": True}),
        pytest.param("linen", {"scan": False, "dropout": 0.0}, marks=pytest.mark.long),
    ],
)
def test_a_run_goes_on_in_the_other_framework_bit_for_bit(
    home: str, model: Any, tmp_path: Path
) -> None:
    there_and_back(decoders.trained, tmp_path, home, model=model)


@pytest.mark.long
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_module_of_ones_own_does_with_every_optimizer(name: str, tmp_path: Path) -> None:
    """With its batch statistics, and a count of its own."""
    home = FRAMEWORKS[list(OPTIMIZERS).index(name) % 2]
    state = there_and_back(twins.trained, tmp_path, home, optimizer=OPTIMIZERS[name])
    assert int(state.buffers["seen"]) == WHOLE * 16
    assert jax.tree.all(jax.tree.map(lambda leaf: bool((leaf != 0).any()), state.buffers))


@pytest.mark.eight_devices
def test_the_state_of_an_optimizer_that_is_spread_over_devices_does(tmp_path: Path) -> None:
    state = there_and_back(
        twins.trained,
        tmp_path,
        "linen",
        optimizer=OPTIMIZERS["a partition"],
        shard={"mesh": {"data": 2, "fsdp": 2, "tensor": 2}, "optimizer_state": "zero1"},
    )
    axes = {str(leaf.sharding.spec) for leaf in jax.tree.leaves(state.opt_state)}
    assert any("data" in each for each in axes)
    assert not any("data" in str(leaf.sharding.spec) for leaf in jax.tree.leaves(state.params))


def test_twins_are_described_alike(tmp_path: Path) -> None:
    """Kinds and roles too, by which optimizers choose."""
    nnx, linen = (twins.trained(tmp_path / each, each, 1).program.model for each in FRAMEWORKS)
    assert nnx.params == linen.params
    assert nnx.buffers == linen.buffers


def test_the_change_is_not_made_unasked(tmp_path: Path) -> None:
    twins.trained(tmp_path, "nnx", 1, checkpoint=SAVING)
    change = r'model.use: "nnx-module" -> "linen-module"\n.*--accept-changes'
    with pytest.raises(UserError, match=change):
        twins.trained(tmp_path, "linen", WHOLE, checkpoint=SAVING)
