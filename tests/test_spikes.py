"""Losses that stand out are kept on record, and the record is part of the state."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import attrs
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import assert_bitwise_equal, host

from trainer_core import RunError, UserError, hookimpl, plugin
from trainer_core.defaults.spikes import no_spikes, watched
from trainer_core.loop import Result, fit

pytestmark = pytest.mark.usefixtures("quick_compiles")


@jax.jit
def _records(losses: jax.Array) -> Any:
    def add(record: Any, loss: jax.Array) -> Any:
        after = watched(record, loss)
        return after, after

    return jax.lax.scan(add, no_spikes(), losses)[1]


def records(losses: Iterable[float]) -> dict[str, np.ndarray]:
    """Return the record after each of at most 100 losses."""
    given = np.asarray(list(losses), np.float32)
    padded = np.zeros(100, np.float32)  # one shape: compiled once
    padded[: len(given)] = given
    found = host(_records(jnp.asarray(padded)))
    return {name: each[: len(given)] for name, each in found.items()}


def noisy(count: int, level: float = 2.0) -> np.ndarray:
    return np.asarray(level + 0.1 * np.random.default_rng(0).uniform(-1, 1, count))


def spikes_at(losses: Iterable[float]) -> list[int]:
    return np.flatnonzero(np.diff(records(losses)["spikes"], prepend=0)).tolist()


def test_losses_far_above_those_before_them_are_counted_each() -> None:
    losses = noisy(60)
    assert spikes_at(losses) == []
    losses[[10, 30, 31, 45]] = [2.5, 4.0, 4.0, 4.0]  # the first among those that are not counted
    assert spikes_at(losses) == [30, 31, 45]


def test_a_low_loss_is_no_spike() -> None:
    losses = noisy(40)
    losses[30] = 0.1
    assert spikes_at(losses) == []


def test_a_lasting_change_of_level_is_a_spike_only_at_first() -> None:
    found = spikes_at([*noisy(30), *noisy(60, level=20.0)])
    assert found == list(range(30, 30 + len(found)))
    # Each widens the spread by sqrt(29/30 * (1 + 36/30)) = 1.46; the change is of 300 deviations,
    # and log(300 / 6) / log(1.46) = 10.4.
    assert 1 <= len(found) <= 11


def test_where_losses_hardly_vary_a_spike_is_one_per_cent_above_them() -> None:
    assert spikes_at([2.0] * 25 + [2.019]) == []
    assert spikes_at([2.0] * 25 + [2.021]) == [25]
    assert spikes_at([-2.0] * 25 + [-1.979]) == [25]  # 1% of the distance from zero


@pytest.mark.parametrize("loss", [np.nan, np.inf, -np.inf])
def test_a_loss_that_is_not_finite_changes_nothing(loss: float) -> None:
    found = records([*noisy(30), loss])
    assert all(each[-1] == each[-2] for each in found.values())


def test_at_first_all_losses_weigh_the_same_and_later_the_last_thirty_count() -> None:
    losses = noisy(100)
    found = records(losses)
    # 20 updates, each of some roundings of 6e-8 of a number near 2; the variance near 3e-3 is
    # made of squares of differences of these.
    assert found["mean"][19] == pytest.approx(np.mean(losses[:20]), rel=5e-6)
    assert found["variance"][19] == pytest.approx(np.var(losses[:20]), rel=2e-3)
    weights = (1 - 1 / 30) ** np.arange(70)[::-1] / 30
    mean = (1 - 1 / 30) ** 70 * np.mean(losses[:30]) + np.sum(weights * losses[30:])
    assert found["mean"][99] == pytest.approx(mean, rel=5e-6)


# ------------------------------------------------------------------ in a run

SPIKED = {"data": {"spiked": [22, 25]}, "checkpoint": {"use": "orbax", "every": 100}}


def lines(result: Result) -> list[dict[str, Any]]:
    text = (result.directory / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in text]


def test_a_record_goes_on_exactly_where_a_run_was_stopped(recipe: Any, tmp_path: Any) -> None:
    def config(name: str) -> Any:
        return recipe(run={"steps": 27, "directory": str(tmp_path / name)}, **SPIKED)

    unbroken = fit(config("unbroken"))
    counts = [line["loss_spikes"] for line in lines(unbroken)]
    assert counts == [0] * 22 + [1] * 3 + [2] * 2
    stopping = {"stop": {"use": "models:StopAfter", "step": 23}}
    broken = config("broken")
    assert fit({**broken, "plugins": {**broken["plugins"], **stopping}}).step == 24
    # Begun anew, the record would count from 0, and none of the next 20 losses.
    resumed = fit(broken, accept_changes=True)
    assert resumed.resumed_from == 24
    assert_bitwise_equal(resumed.state, unbroken.state)
    assert lines(resumed) == lines(unbroken)


@plugin
class WithoutRecord:
    """A step that keeps no record of spikes, as another trainer's, or an older one."""

    @hookimpl(wrapper=True)
    def step(self) -> Any:
        inner = yield

        def without(extra: Any) -> Any:
            return {name: tree for name, tree in extra.items() if name != "spikes"}

        def apply(state: Any, batch: Any) -> Any:
            given = attrs.evolve(state, extra=state.extra | {"spikes": no_spikes()})
            after, metrics = inner(given, batch)
            return attrs.evolve(after, extra=without(after.extra)), metrics

        return attrs.evolve(inner, apply=apply, init=lambda params: without(inner.init(params)))


def test_a_checkpoint_without_a_record_is_refused_by_path(recipe: Any) -> None:
    config = recipe(run={"steps": 2}, checkpoint={"use": "orbax"})
    plugins = {**config["plugins"], "without": {"use": "test_spikes:WithoutRecord"}}
    fit({**config, "plugins": plugins})
    with pytest.raises(UserError, match="missing: 4") as caught:
        fit({**config, "run": {**config["run"], "steps": 4}}, accept_changes=True)
    for name in no_spikes():
        assert f"extra/spikes/{name} " in str(caught.value)


# ------------------------------------------------------------------ steps skipped in a row


def stopped_at_five(config: Any) -> None:
    """Train until the fourth step is reported; the fifth is then under way, and is saved."""
    stopping = {"stop": {"use": "models:StopAfter", "step": 4}}
    assert fit({**config, "plugins": {**config["plugins"], **stopping}}).step == 5


def test_steps_skipped_in_a_row_are_counted_on_after_a_resume(recipe: Any) -> None:
    config = recipe(
        run={"steps": 9},
        data={"nan_loss": [3, 4, 5]},
        step={"max_skipped": 3},
        checkpoint={"use": "orbax", "every": 100},
    )
    stopped_at_five(config)
    with pytest.raises(RunError, match=r"stopped at step 6: 3 steps in a row .*loss term squares"):
        fit(config, accept_changes=True)


def test_a_finite_step_after_a_resume_forgives_those_before_it(recipe: Any) -> None:
    config = recipe(
        run={"steps": 9},
        data={"nan_loss": [3, 4, 6, 7]},
        step={"max_skipped": 3},
        checkpoint={"use": "orbax", "every": 100},
    )
    stopped_at_five(config)
    result = fit(config, accept_changes=True)
    assert (result.resumed_from, result.step) == (5, 9)
    assert result.metrics["skipped_steps"] == 4


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # of the rate, in numpy
def ruined(recipe: Any, clip_norm: float) -> tuple[Any, Path]:
    """Train 20 steps and save, then on at a rate after which no step is finite; 30 is saved too.

    Returns the config with which to go on as if nothing had been, and the checkpoints' folder.
    """

    def config(steps: int, rate: float = 0.1, clip_norm: float = 1.0) -> Any:
        return recipe(
            run={"steps": steps},
            data={"spiked": [20]},
            optimizer={"use": "sgd"},
            schedule={"learning_rate": rate},
            step={"clip_norm": clip_norm},
            checkpoint={"use": "orbax", "every": 10, "keep": 1},
        )

    good = fit(config(20))
    with pytest.raises(RunError, match="stopped at step 31: 10 steps in a row"):
        fit(config(40, 1e38, clip_norm), accept_changes=True)
    return config(40), good.directory / "checkpoints"


def test_a_run_that_became_not_finite_goes_on_from_what_was(
    recipe: Any, caplog: pytest.LogCaptureFixture
) -> None:
    config, checkpoints = ruined(recipe, clip_norm=0.0)  # step 21 makes infinities
    assert {each.name for each in checkpoints.iterdir()} == {"20", "30"}
    result = fit(config, accept_changes=True)
    assert (result.resumed_from, result.step) == (20, 40)
    [said] = [each.getMessage() for each in caplog.records if "not used" in each.getMessage()]
    assert "30 is not used: not finite: " in said
    assert "params/" in said


def test_what_was_saved_among_skipped_steps_pushes_out_nothing(recipe: Any) -> None:
    config, checkpoints = ruined(recipe, clip_norm=1.0)  # finite parameters, of which no loss is
    assert {each.name for each in checkpoints.iterdir()} == {"20", "30"}
    with pytest.raises(RunError, match="stopped at step 31"):  # as if it had not been stopped
        fit(config, accept_changes=True)
    (checkpoints / "30").rename(checkpoints / "30.away")
    result = fit(config, accept_changes=True)
    assert (result.resumed_from, result.step) == (20, 40)
    assert {each.name for each in checkpoints.iterdir()} == {"30.away", "40"}
