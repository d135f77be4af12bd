"""`trainer plan` as a command: what it prints, as JSON too, and with which exit code."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import attrs
import jax
import pytest
from command import PERCEPTRON

from trainer_core.cli import plan_page, run
from trainer_core.config import load_config
from trainer_core.plan.answer import Answer, answered
from trainer_core.plan.chips import CHIPS
from trainer_core.plan.cost import Cost, Exchange
from trainer_core.plan.record import as_json
from trainer_core.plan.roofline import roofline_of
from trainer_core.plan.topology import parse_topology
from trainer_core.plan.variants import Variants
from trainer_core.terminal.figures import exact_size
from trainer_core.terminal.page import Page

SETTINGS = [*PERCEPTRON, "checkpoint.use=none", "plugins.progress=false"]


@pytest.fixture(scope="module")
def answer(quick_compiles: None) -> Answer:
    """Of a plan on the CPU, to which the figures of a TPU are then given."""
    return answered(Variants(None, SETTINGS, jax.devices()[:1]), None)


@pytest.fixture(scope="module")
def on_a_chip(answer: Answer) -> Answer:
    chip, plan = CHIPS["v5e"], answer.plan
    cost = Cost((Exchange("all-gather", (0, 1), 4096, 3),))
    roofline = roofline_of(chip, 1, plan.step, plan.model_flops, plan.memory, cost)
    known = {"chip": chip, "available": chip.memory, "cost": cost, "roofline": roofline}
    return attrs.evolve(answer, plan=attrs.evolve(plan, **known))


def printed(answer: Answer, capsys: pytest.CaptureFixture[str]) -> str:
    plan_page.show(answer, load_config(None, SETTINGS), parse_topology("cpu:1"))
    return capsys.readouterr().out


def test_the_command_prints_a_plan_or_the_same_as_json(
    quick_compiles: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["plan", *SETTINGS, "--topology", "cpu:1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fits"] is None
    assert found["mesh"] == {"data": 1, "fsdp": 1, "tensor": 1}
    assert found["memory"]["total"] == sum(
        size for name, size in found["memory"].items() if name != "total"
    )
    xla = found["xla_memory"]
    assert xla["total"] == (xla["arguments"] + xla["outputs"] - xla["aliased"] + xla["temporaries"])
    assert found["memory"]["total"] == pytest.approx(xla["total"], rel=0.03)
    # 8 x 16 and 16 x 8 weights, 16 rows; the batch takes no gradient, and one product is saved.
    assert found["flops"]["model"] == 3 * 2 * 16 * (8 * 16 + 16 * 8)
    assert found["flops"]["step"] == found["flops"]["model"] - 2 * 16 * 8 * 16
    assert found["collectives"] == {}
    assert run(["plan", *SETTINGS, "--topology", "cpu:1"]) == 0
    text = capsys.readouterr().out
    assert "no verdict" in text
    more = xla["total"] / found["memory"]["total"] - 1
    assert f"{exact_size(xla['total'])}  {more:+.1%}  XLA says" in text


def test_a_plan_is_read_within_a_hundred_columns(
    on_a_chip: Answer, capsys: pytest.CaptureFixture[str]
) -> None:
    text = printed(on_a_chip, capsys)
    assert "fits: " in text
    assert " of 15.75 GiB a device" in text
    assert "all-gather  3      12.00 KiB" in text
    assert "cloud.google.com/tpu/docs/v5e" in text
    assert max(map(len, text.splitlines())) <= 100


def test_a_first_state_that_may_take_more_than_a_step_is_said(
    on_a_chip: Answer, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = on_a_chip.plan
    # Of the perceptron's 8 x 16 numbers, 20 bytes each.
    assert plan.beginning == plan.memory.state + 20 * 128
    large = attrs.evolve(plan, xla_memory=attrs.evolve(plan.xla_memory, temporaries=10_000))
    assert "first state" not in printed(attrs.evolve(on_a_chip, plan=large), capsys)
    xla = attrs.evolve(plan.xla_memory, temporaries=0)
    small = attrs.evolve(plan, xla_memory=xla, available=plan.beginning - 1)
    said = printed(attrs.evolve(on_a_chip, plan=small), capsys)
    whole = exact_size(plan.beginning)
    assert f"up to {whole} a device while it is drawn: more than a step, and than a " in said


def test_what_does_not_fit_is_said_with_its_knobs(
    answer: Answer, capsys: pytest.CaptureFixture[str]
) -> None:
    from trainer_core.plan.knobs import knobs

    plan = attrs.evolve(answer.plan, available=1000.0, refused="the compiler ran out of memory")
    found = knobs(plan, Variants(None, SETTINGS, jax.devices()[:1]))
    text = printed(attrs.evolve(answer, plan=plan, knobs=found), capsys)
    assert "does not fit: " in text
    assert "accumulate.microbatches=2" in text
    assert max(map(len, text.splitlines())) <= 100
    record: Any = as_json(attrs.evolve(answer, plan=plan, knobs=found))
    assert record["fits"] is False
    assert record["knobs"][0]["saved_bytes"] > 0
    assert json.dumps(record)


def test_a_mistake_in_the_topology_is_told_before_the_config_is_read(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["plan", "no-such.toml", "--topology", "v5e:5x5"]) == 2
    assert "there is no such slice of TPU v5e" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--topology", ""], "there is no chip ''; there are v4, "),
        (["--seconds", "3"], "--seconds is for how long to search; give --search too"),
    ],
)
def test_what_would_be_left_unused_is_refused(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["plan", *SETTINGS, *arguments]) == 2
    assert said in capsys.readouterr().err


def test_a_mesh_that_does_not_fit_the_topology_is_an_error_with_its_place(
    capsys: pytest.CaptureFixture[str],
) -> None:
    mesh = "shard.mesh={data=3, fsdp=1, tensor=1}"
    assert run(["plan", *SETTINGS, mesh, "--topology", "cpu:1"]) == 2
    said = capsys.readouterr().err
    assert "needs 3 devices, and there are 1 (cpu)" in said
    assert "shard.mesh: " in said


def test_where_no_setting_is_enough_that_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    knob: Any = SimpleNamespace(
        changes=("model.remat=full",), cost="", memory=SimpleNamespace(total=2**31), saved=2**20
    )
    for available, said in ((2**30, True), (2**32, False)):
        plan: Any = SimpleNamespace(available=available)
        plan_page._knobs(Page(), [knob], plan)
        assert ("plan for more devices" in capsys.readouterr().out) == said
