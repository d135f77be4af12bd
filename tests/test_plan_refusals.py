"""What a compiler says when it refuses, word for word, and what `trainer plan` makes of it."""

from __future__ import annotations

import jax
import pytest
from command import PERCEPTRON
from jax.experimental import topologies

from trainer_core import UserError
from trainer_core.config import load_config
from trainer_core.plan.devices import devices_of
from trainer_core.plan.planning import plan_step
from trainer_core.plan.topology import parse_topology
from trainer_core.plan.xla_memory import Refusal

GIB = 2**30
# libtpu 0.0.42 and 0.0.50, before it schedules: the temporaries alone.
EARLY = (
    "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries "
    "(49.16G) exceeds available HBM (15.75G)."
)
# After it: all that is used, arguments among it. The head of what libtpu prints, as a user of v5e
# reported it; 0.0.42 still has these words.
LATE = """RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 30.21G of 15.48G hbm. Exceeded hbm capacity by 14.73G.

Total hbm usage >= 30.73G:
    reserved        530.00M 
    program          14.31G 
    arguments        15.90G 
"""  # noqa: E501, W291
# libtpu 0.0.42, of one chip, unless it is told that a host may have one.
NO_SUCH_SLICE = (
    'INVALID_ARGUMENT: Topology layout "v5e:1x1" is not divisible by the given (or default) '
    'chips_per_host_bounds "2x2x1"'
)


def test_an_early_refusal_says_the_temporaries() -> None:
    found = Refusal.read(EARLY, arguments=5 * GIB)
    assert found.said == EARLY.removeprefix("RESOURCE_EXHAUSTED: ")
    assert found.passing == int(49.16 * GIB)


def test_a_late_refusal_says_all_that_is_used() -> None:
    found = Refusal.read(LATE, arguments=int(15.90 * GIB))
    assert found.said == LATE.splitlines()[0].partition("error. ")[2]
    assert found.passing == pytest.approx(14.31 * GIB, abs=10)  # what it calls the program


def test_words_that_say_no_number_are_kept() -> None:
    assert Refusal.read("RESOURCE_EXHAUSTED: no more", 0) == Refusal(
        "RESOURCE_EXHAUSTED: no more", None
    )


def refuse(message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def compile_(lowered: jax.stages.Lowered) -> None:
        raise jax.errors.JaxRuntimeError(message)

    monkeypatch.setattr(jax.stages.Lowered, "compile", compile_)


def test_a_refused_step_is_a_plan_that_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(EARLY, monkeypatch)
    plan = plan_step(load_config(None, [*PERCEPTRON, "checkpoint.use=none"]), jax.devices()[:1])
    assert plan.fits is False
    assert plan.needed == plan.memory.arguments + int(49.16 * GIB)
    assert (plan.xla_memory, plan.cost, plan.roofline) == (None, None, None)


def test_any_other_failure_of_the_compiler_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse("INTERNAL: Mosaic failed", monkeypatch)
    with pytest.raises(jax.errors.JaxRuntimeError, match="Mosaic failed"):
        plan_step(load_config(None, [*PERCEPTRON, "checkpoint.use=none"]), jax.devices()[:1])


def test_a_topology_that_the_compiler_refuses_is_an_error_with_its_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(**options: object) -> None:
        raise jax.errors.JaxRuntimeError(NO_SUCH_SLICE)

    monkeypatch.setattr(topologies, "get_topology_desc", refused)
    with pytest.raises(UserError, match=r"^--topology v5e:1x1: .*chips_per_host_bounds"):
        devices_of(parse_topology("v5e:1x1"))
