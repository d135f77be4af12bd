"""Held-out data counts each row once, by its weight, whatever the batch and the devices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import jax
import pytest
from programs import build, recipe

from trainer_core import UserError, cli
from trainer_core.assemble import open_run
from trainer_core.config import load_config
from trainer_core.defaults.evaluate import build_held_out_loss
from trainer_core.fitting import check_batch_size
from trainer_core.program import build_program


def held_out_loss(batch_size: int, mesh: dict[str, int]) -> float:
    """The loss of the initial state on 30 held-out rows, or 28."""
    config = load_config(
        recipe(
            model={"width": 16},
            data={"batch_size": batch_size, "held_out": 30},
            shard={"mesh": mesh},
        )
    )
    devices = jax.devices() if mesh else jax.devices()[:1]
    run, hooks = open_run(config, devices=devices)
    program = build_program(attrs.evolve(run, is_read=True), hooks)
    losses = build_held_out_loss(program)
    return float(losses(program.initial_state(), 100)["eval_loss"])


@pytest.mark.eight_devices
@pytest.mark.parametrize("batch_size", [3, 10, 14])
@pytest.mark.parametrize("mesh", [{"data": 8}, {"data": 2, "fsdp": 2, "tensor": 2}])
def test_a_batch_that_the_devices_do_not_divide_gives_the_loss_of_one_device(
    batch_size: int, mesh: dict[str, int]
) -> None:
    """The rows that fill it up add 0 to each sum, which is only added up in another order."""
    # A row's loss is a sum over 8 numbers of sums over 16 and 8; a batch's over at most 14 rows.
    roundings = 14 + 8 + 16 + 8
    assert held_out_loss(batch_size, mesh) == pytest.approx(
        held_out_loss(batch_size, {}), rel=roundings * 2.0**-24
    )


@pytest.mark.eight_devices
def test_what_has_no_weights_cannot_be_filled_up() -> None:
    run, _ = open_run(load_config(recipe(data={"batch_size": 12})))
    read = attrs.evolve(run, is_read=True)
    check_batch_size(read, ["x", "weights"])
    with pytest.raises(UserError, match=r"its batches have no `weights`, .* they have x, y\)"):
        check_batch_size(read, ["x", "y"])
    with pytest.raises(UserError, match=r"devices that \[shard\] mesh spreads a batch over; the "):
        check_batch_size(run, ["x", "weights"])


def test_microbatches_refuse_no_batch_that_is_only_evaluated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(tmp_path / "run")
    settings = ["model.use=models:Perceptron", "data.use=models:Examples", "data.held_out=24"]
    train = ["train", *settings, f"run.directory={run}", "run.steps=1", "accumulate.microbatches=4"]
    assert cli.run([*train, "--quiet"]) == 0
    losses: list[Any] = []
    for size in (3, 8):
        capsys.readouterr()
        assert cli.run(["evaluate", run, "--json", f"data.batch_size={size}"]) == 0
        losses.append(json.loads(capsys.readouterr().out)["eval_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_devices_that_do_not_fit_the_mesh_of_a_run_are_told_what_to_give() -> None:
    def said(mesh: dict[str, int]) -> str:
        with pytest.raises(UserError) as caught:
            build(recipe(shard={"mesh": mesh}))
        message = str(caught.value)
        return message[message.index("such as ") :]

    assert said({"data": 2, "fsdp": 4}).startswith(
        "such as 'shard.mesh={data = 1, fsdp = -1, tensor = 1}'"
    )
    assert said({"data": 8}).startswith("such as 'shard.mesh={data = -1, fsdp = 1, tensor = 1}'")
