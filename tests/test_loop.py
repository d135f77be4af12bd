"""The loop keeps its order, repeats itself bit by bit, and goes on where it stopped."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np
import pytest
from models import Recorder
from programs import assert_bitwise_equal, build, host

from trainer_core import RunError, UserError, hookimpl, hookspecs, plugin, requests, setting
from trainer_core.config import load_config
from trainer_core.defaults.evaluate import build_held_out_loss
from trainer_core.loop import Result, fit, train

pytestmark = pytest.mark.usefixtures("quick_compiles")

HOOKS = [name for name in vars(hookspecs.TrainerSpec) if not name.startswith("_")]
TIMES = ("seconds", "tokens_per_second")


def recorded(config: dict[str, Any], **plugins: Any) -> tuple[Result, Recorder]:
    """Run a config with a recorder."""
    checked, recorder = watched(config, **plugins)
    return train(checked), recorder


def watched(config: dict[str, Any], **plugins: Any) -> tuple[Any, Recorder]:
    extra = {"recorder": {"use": "models:Recorder"}, **plugins}
    checked = load_config({**config, "plugins": {**config["plugins"], **extra}})
    return checked, checked.chosen["plugins.recorder"].plugin


def lines(directory: Any) -> list[dict[str, Any]]:
    """Return metrics.jsonl without what a clock says."""
    text = (Path(directory) / "metrics.jsonl").read_text()
    entries = [json.loads(line) for line in text.splitlines()]
    return [{k: v for k, v in entry.items() if k not in TIMES} for entry in entries]


# ------------------------------------------------------------------ the order of things


def test_the_loop_keeps_its_order(recipe: Any) -> None:
    config = recipe(
        run={"log_every": 2, "eval_every": 3},
        checkpoint={"use": "models:Forgetful", "every": 2},
    )
    _, recorder = recorded(config)
    events = [
        f"{name} {given['step']}" if isinstance(given.get("step"), int) else name
        for name, given in recorder.calls
        if name != "phase"
    ]
    assert events == [
        # On shapes alone, each once. Data first; a batch is asked for, to know its shapes.
        *("build_data", "batch 0", "build_state", "build_schedule", "build_optimizer"),
        "describe_optimizer",
        *("accumulate", "step", "shard"),
        *("restore", "start 0"),
        *("batch 0", "batch 1"),
        # Reported before it is saved, saved before the next batch is taken.
        *("report 2", "save 2"),
        *("batch 2", "evaluate 3", "report 3"),
        # The last step has everything: evaluated, reported, saved.
        *("batch 3", "evaluate 4", "report 4", "save 4"),
        "close",
    ]


def test_a_step_is_reported_after_the_next_was_sent_to_the_device(recipe: Any) -> None:
    _, recorder = recorded(recipe(run={"log_every": 1}))
    events = [
        (name, given["step"]) for name, given in recorder.calls if name in ("batch", "report")
    ]
    assert events[1:] == [  # the first batch is for its shapes
        *(("batch", 0), ("batch", 1), ("report", 1), ("batch", 2), ("report", 2)),
        *(("batch", 3), ("report", 3), ("report", 4)),
    ]


def test_phases_are_announced_in_their_order_with_what_is_built(recipe: Any) -> None:
    config = recipe(run={"eval_every": 2}, checkpoint={"use": "models:Forgetful", "every": 3})
    _, recorder = recorded(config)
    assert [given["name"] for given in recorder.given("phase")] == [
        *("building", "restoring", "compiling", "initialising", "training"),
        *("evaluating", "training"),
        *("saving", "training"),
        *("evaluating", "training", "saving", "training"),
        "closing",
    ]
    (started,) = recorder.given("start")
    for given in recorder.given("phase"):
        is_built = given["name"] not in ("building", "closing")
        assert given["program"] is (started["program"] if is_built else None)


@pytest.mark.parametrize(
    ("settings", "reported", "evaluated"),
    [
        ({"steps": 5, "log_every": 2}, [2, 4, 5], [5]),
        ({"steps": 4, "log_every": 3, "eval_every": 2}, [2, 3, 4], [2, 4]),
        ({"steps": 4, "log_every": 9, "eval_every": 9}, [4], [4]),
        ({"steps": 2, "eval_batches": 0}, [1, 2], []),
    ],
)
def test_reports_and_evaluations_come_when_they_are_due(
    recipe: Any, settings: Any, reported: list[int], evaluated: list[int]
) -> None:
    result, recorder = recorded(recipe(run=settings))
    reports = recorder.given("report")
    assert [given["step"] for given in reports] == reported
    assert [each["step"] for each in reports if "eval_loss" in each["metrics"]] == evaluated
    assert [line["step"] for line in lines(result.directory)] == reported
    assert result.metrics == reports[-1]["metrics"]


# ------------------------------------------------------------------ what the hooks are given


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Recorder:
    """The calls of a run in which every hook is called."""
    import programs

    folder = tmp_path_factory.mktemp("whole")
    config = programs.recipe(
        run={"directory": str(folder / "run"), "eval_every": 2},
        model={"terms": ["squares", "sizes"]},
        checkpoint={"use": "models:Forgetful", "every": 2},
    )
    return recorded(config)[1]


@pytest.mark.parametrize("hook", HOOKS)
def test_each_hook_is_called_with_what_its_specification_says(
    whole_run: Recorder, hook: str
) -> None:
    import inspect

    spec = inspect.signature(getattr(hookspecs.TrainerSpec, hook))
    calls = whole_run.given(hook)
    assert calls, f"{hook} was never called"
    for given in calls:
        arguments = {name: value for name, value in given.items() if name != "answer"}
        assert list(arguments) == list(spec.parameters)[1:]
        assert arguments["run"] is whole_run.calls[0][1]["run"]
        said = {name: each.annotation for name, each in spec.parameters.items()}
        missing = [name for name, value in arguments.items() if value is None]
        assert all("None" in said[name] for name in missing)


@pytest.mark.parametrize("hook", HOOKS)
def test_building_hooks_are_called_once_and_answer(whole_run: Recorder, hook: str) -> None:
    built = hook.startswith("build_") or hook in ("accumulate", "step", "shard")
    calls = whole_run.given(hook)
    if built or hook in ("start", "close"):
        assert len(calls) == 1
    if built:
        assert calls[0]["answer"] is not None


def test_no_hook_sees_a_tracer(whole_run: Recorder) -> None:
    leaves = jax.tree.leaves([list(given.values()) for _, given in whole_run.calls])
    assert any(isinstance(leaf, jax.Array) for leaf in leaves)
    assert not any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)


def test_what_is_built_is_built_of_what_was_built(whole_run: Recorder) -> None:
    def answer(hook: str) -> Any:
        return whole_run.given(hook)[0]["answer"]

    program = whole_run.given("start")[0]["program"]
    assert whole_run.given("build_optimizer")[0]["model"] is answer("build_state")
    assert whole_run.given("build_optimizer")[0]["learning_rate"] is answer("build_schedule")
    assert whole_run.given("step")[0]["grad_fn"] is answer("accumulate")
    optimizer, built = whole_run.given("step")[0]["optimizer"], answer("build_optimizer")
    assert type(optimizer) is type(built)  # wrapped, to name its settings in what it raises
    assert (optimizer.init.__wrapped__, optimizer.update.__wrapped__) == (built.init, built.update)
    assert program.shardings is answer("shard")
    assert program.step is answer("step")
    assert program.data is answer("build_data")
    leaves = jax.tree.leaves(whole_run.given("restore")[0]["like"])
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) and leaf.sharding for leaf in leaves)


def test_a_report_is_made_of_python_numbers(whole_run: Recorder) -> None:
    reports = whole_run.given("report")
    assert {type(value) for each in reports for value in each["metrics"].values()} == {int, float}
    assert {"loss", "loss/squares", "eval_loss", "eval_loss/sizes"} <= reports[-1]["metrics"].keys()


def test_what_a_plugin_evaluates_is_reported_as_python_numbers(recipe: Any, user_file: Any) -> None:
    user_file(
        "extra.py",
        "import jax.numpy as jnp, numpy as np\n"
        "from trainer_core import hookimpl, plugin\n"
        "@plugin\n"
        "class Extra:\n"
        "    @hookimpl\n"
        "    def evaluate(self, state):\n"
        "        return {'size': jnp.sum(jnp.abs(state.params['gain'])), 'two': np.int64(2)}\n",
    )
    recipe_file = user_file("empty.toml", "")
    from trainer_core.imports import search_in

    search_in(recipe_file.parent)
    result, recorder = recorded(recipe(), extra={"use": "extra:Extra"})
    metrics = recorder.given("report")[-1]["metrics"]
    assert (type(metrics["size"]), type(metrics["two"])) == (float, int)
    size = np.abs(host(result.state.params["gain"])).sum()
    assert metrics["size"] == pytest.approx(size, rel=1e-6)  # a sum of 16, in any order
    assert "eval_loss" in metrics
    assert lines(result.directory)[-1]["two"] == 2


# ------------------------------------------------------------------ when something fails


@pytest.mark.parametrize("hook", [*HOOKS, "batch"])
def test_a_hook_that_raises_ends_the_run_by_name_and_every_plugin_is_closed(
    recipe: Any, hook: str
) -> None:
    checked, recorder = watched(
        recipe(run={"eval_every": 2}, checkpoint={"use": "models:Forgetful", "every": 2}),
        failing={"use": "models:Failing", "hook": hook},
    )
    failing = checked.chosen["plugins.failing"].plugin
    with pytest.raises(RuntimeError, match=f"no fuel in {hook}") as caught:
        train(checked)
    for each in (recorder, failing):
        assert each.names().count("close") == 1
        assert each.names()[-1] == "close"
    if hook != "batch":  # no hook, but what one of them gave
        note = f"raised in the hook {hook} of [plugins.failing] models:Failing"
        assert [each for each in caught.value.__notes__ if note in each]
    expected = None if hook == "close" else caught.value
    assert recorder.given("close")[0]["error"] is expected


def test_plugins_that_fail_to_close_do_not_hide_what_went_wrong_before(recipe: Any) -> None:
    fails = {"use": "models:Failing", "hook": "close"}
    checked, recorder = watched(
        recipe(data={"nan_loss": [0]}, step={"skip_nonfinite": False}), a=fails, b=fails
    )
    with pytest.raises(RunError, match="not finite: the loss term squares") as caught:
        train(checked)
    assert recorder.names()[-1] == "close"
    # As with every hook, the last named comes first.
    assert caught.value.__notes__[-2:] == [
        f"closing then raised RuntimeError: no fuel in close, raised in the hook close of "
        f"[plugins.{name}] models:Failing"
        for name in ("b", "a")
    ]


# ------------------------------------------------------------------ metrics.jsonl


def test_metrics_read_back_exactly(recipe: Any) -> None:
    result, recorder = recorded(
        recipe(run={"steps": 3}, data={"nan_loss": [1]}, model={"terms": ["squares", "sizes"]})
    )
    text = (result.directory / "metrics.jsonl").read_text()
    entries = [json.loads(line) for line in text.splitlines()]
    reports = recorder.given("report")
    assert [entry.pop("step") for entry in entries] == [1, 2, 3]
    for entry, report in zip(entries, reports, strict=True):
        expected = {k: v for k, v in report["metrics"].items() if not k.startswith("_")}
        assert entry.keys() == expected.keys()
        for name, value in expected.items():
            # Not a number is no JSON: it stands there as a string, which float() reads.
            found = float(entry[name]) if isinstance(value, float) else entry[name]
            assert found == value or (math.isnan(found) and math.isnan(value))
    assert entries[1]["loss"] == "nan"


def test_metrics_have_the_names_of_the_design(recipe: Any) -> None:
    result = fit(recipe(model={"terms": ["squares", "sizes"]}))
    *_, last = (result.directory / "metrics.jsonl").read_text().splitlines()
    assert set(json.loads(last)) == {
        *("step", "loss", "loss/squares", "loss/sizes", "grad_norm", "learning_rate"),
        *("skipped_steps", "loss_spikes", "seconds"),
        *("eval_loss", "eval_loss/squares", "eval_loss/sizes"),
    }


# ------------------------------------------------------------------ evaluation


@pytest.mark.parametrize("batch_size", [4, 8, 16])
def test_the_held_out_loss_does_not_depend_on_how_rows_fall_into_batches(
    recipe: Any, batch_size: int
) -> None:
    def held_out(size: int) -> tuple[float, list[float]]:
        terms = {"terms": ["squares", "sizes"]}
        parts = build(recipe(data={"batch_size": size}, model=terms))
        losses, state = build_held_out_loss(parts.program), parts.state()
        count = parts.program.data.held_out_batches
        each = []
        source = parts.program.data.held_out
        for index in range(count):
            parts.program.data.held_out = lambda _, index=index: source(index)
            each.append(losses(state, 1)["eval_loss"])
        parts.program.data.held_out = source
        return losses(state, count)["eval_loss"], each

    (whole, [single]), (found, each) = held_out(32), held_out(batch_size)
    assert whole == single
    # Sums of float32 over at most 32 rows of 8, added up in float64: some 40 roundings of 6e-8.
    assert found == pytest.approx(whole, rel=2.5e-6)
    # The mean of the batches' losses, which is not what is wanted, is far outside that bound.
    assert abs(np.mean(each) - whole) > 1e-3 * whole


# ------------------------------------------------------------------ again, and going on


def test_the_same_run_twice_is_bitwise_equal(recipe: Any, tmp_path: Path) -> None:
    def run(name: str) -> Result:
        return fit(
            recipe(
                run={"directory": str(tmp_path / name), "eval_every": 2},
                model={"dropout": 0.3},
            )
        )

    first, second = run("first"), run("second")
    assert_bitwise_equal(second.state, first.state)
    assert lines(second.directory) == lines(first.directory)


def test_another_seed_is_another_run(recipe: Any, tmp_path: Path) -> None:
    first = fit(recipe(run={"directory": str(tmp_path / "first")}))
    other = fit(recipe(run={"directory": str(tmp_path / "other"), "seed": 1}))
    assert first.metrics["loss"] != other.metrics["loss"]


# Momentum, dropout, buffers, skipped steps and a second term: all that a checkpoint must hold.
RESUMED = {
    "model": {"dropout": 0.3, "terms": ["squares", "sizes"]},
    "schedule": {"use": "cosine", "learning_rate": 0.1, "warmup": 2},
    "data": {"nan_loss": [1]},
    "checkpoint": {"use": "orbax", "every": 3},
}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Result:
    import programs

    folder = tmp_path_factory.mktemp("unbroken")
    settings = {"steps": 8, "eval_every": 4, "directory": str(folder / "run")}
    return fit(programs.recipe(run=settings, **RESUMED))


@plugin
class Sets:
    """Sets the clock after each step, far into the future or back, also while a save is written."""

    offset: ClassVar[float] = 0.0
    clock: ClassVar[Callable[[], float]] = time.time

    @hookimpl
    def report(self, step: int) -> None:
        type(self).offset = 7_200.0 if step % 2 else -86_400.0


def test_a_clock_that_jumps_changes_nothing(
    recipe: Any, unbroken: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    import test_loop  # as the config finds it

    sets = test_loop.Sets
    monkeypatch.setattr(time, "time", lambda: sets.clock() + sets.offset)
    config = recipe(run={"steps": 8, "eval_every": 4}, **RESUMED)
    jumping = {"sets": {"use": "test_loop:Sets"}}
    recorded(config, stop={"use": "models:StopAfter", "step": 4}, **jumping)
    result, _ = recorded(config, **jumping)
    assert result.resumed_from == 5
    assert_bitwise_equal(result.state, unbroken.state)
    assert lines(result.directory) == lines(unbroken.directory)


@pytest.mark.parametrize("stops", [[1], [2, 5], [3], [7]])
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(
    recipe: Any, unbroken: Result, stops: list[int]
) -> None:
    config = recipe(run={"steps": 8, "eval_every": 4}, **RESUMED)
    before = 0
    for stop in stops:
        stopping = {"stop": {"use": "models:StopAfter", "step": stop}}
        result, _ = recorded(config, **stopping)
        # Step n is reported, and the stop asked for, when n + 1 is under way; that is finished.
        assert (result.resumed_from, result.step) == (before, stop + 1)
        assert result.stopped == f"stopped by the test at step {stop}" or result.step == 8
        before = result.step
    result = fit(config, accept_changes=True)  # the recorder wraps hooks, and is not there now
    assert (result.resumed_from, result.step, result.stopped) == (before, 8, "")
    assert_bitwise_equal(result.state, unbroken.state)
    assert lines(result.directory) == lines(unbroken.directory)
    assert [line["step"] for line in lines(result.directory)] == list(range(1, 9))


def test_a_run_that_was_copied_elsewhere_goes_on_there_exactly(
    recipe: Any, unbroken: Result, tmp_path: Path
) -> None:
    config = recipe(run={"steps": 8, "eval_every": 4}, **RESUMED)
    stopped, _ = recorded(config, stop={"use": "models:StopAfter", "step": 4})
    moved = tmp_path / "another disk" / "copy"
    shutil.copytree(stopped.directory, moved)
    shutil.rmtree(stopped.directory)
    result = fit(
        {**config, "run": {**config["run"], "directory": str(moved)}}, accept_changes=True
    )  # the recorder is not there now
    assert (result.resumed_from, result.step, result.directory) == (5, 8, moved)
    assert not stopped.directory.exists()
    assert_bitwise_equal(result.state, unbroken.state)
    assert lines(moved) == lines(unbroken.directory)


def test_a_run_that_failed_goes_on_from_its_last_checkpoint(recipe: Any, unbroken: Result) -> None:
    config = recipe(run={"steps": 8, "eval_every": 4}, **RESUMED)
    checked, _ = watched(config, failing={"use": "models:Failing", "hook": "report", "at": 5})
    with pytest.raises(RuntimeError, match="no fuel in report"):
        train(checked)
    assert lines(checked.directory)[-1]["step"] == 4  # beyond the checkpoint of step 3
    result = fit(config, accept_changes=True)
    assert result.resumed_from == 3
    assert_bitwise_equal(result.state, unbroken.state)
    assert lines(result.directory) == lines(unbroken.directory)


@plugin
class WaitsForTheDisk:
    """Asks for no batch from some step on before the checkpoint under way is written, or is not."""

    step: int = setting()

    @hookimpl(wrapper=True)
    def build_data(self) -> Any:
        source = yield
        batch = source.batch

        def late(step: int) -> Any:
            if step >= self.step:
                for thread in threading.enumerate():
                    if thread.name == "checkpoint":
                        thread.join()
            return batch(step)

        source.batch = late
        return source


def test_a_failed_write_ends_a_run_at_the_next_step_though_it_reports_nothing(
    recipe: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    config = recipe(
        run={"steps": 50, "log_every": 50}, checkpoint={"use": "orbax", "every": 10, "keep": 9}
    )
    slow = {"slow": {"use": "test_loop:WaitsForTheDisk", "step": 25}}
    fit({**config, "run": {**config["run"], "steps": 15}})
    monkeypatch.setattr("trainer_checkpoint.contents.seal", full)
    checked, recorder = watched(config, **slow)
    with pytest.raises(RunError) as caught:
        train(checked, accept_changes=True)
    assert caught.value.exit_code == 1
    assert re.fullmatch(
        r"the checkpoint of step 20 cannot be written to .*/20: no space left on the disk; the "
        r"older ones are intact: steps 10, 15",
        str(caught.value),
    )
    # The write had failed when the batch of step 25 was asked for, at the latest.
    assert max(each["step"] for each in recorder.given("batch")) <= 25
    assert not [each for each in caplog.records if each.name == "absl"]


def test_a_finished_run_answers_without_training(recipe: Any) -> None:
    config = recipe(run={"steps": 2}, checkpoint={"use": "orbax"})
    first = fit(config)
    checked, recorder = watched(config)
    again = train(checked, accept_changes=True)  # the recorder wraps hooks, and was not there
    assert (again.resumed_from, again.step) == (2, 2)
    assert_bitwise_equal(again.state, first.state)
    phases = [given["name"] for given in recorder.given("phase")]
    assert phases == ["building", "restoring", "closing"]
    assert [line["step"] for line in lines(again.directory)] == [1, 2]


def test_a_longer_run_goes_on_from_a_finished_one(recipe: Any) -> None:
    fit(recipe(run={"steps": 2}, checkpoint={"use": "orbax"}))
    result = fit(recipe(run={"steps": 3}, checkpoint={"use": "orbax"}))
    assert (result.resumed_from, result.step) == (2, 3)
    assert [line["step"] for line in lines(result.directory)] == [1, 2, 3]


def test_fewer_steps_than_are_made_is_an_error(recipe: Any) -> None:
    fit(recipe(run={"steps": 3}, checkpoint={"use": "orbax"}))
    with pytest.raises(UserError, match=r"has made 3 steps .* run\.steps = 2; raise run\.steps"):
        fit(recipe(run={"steps": 2}, checkpoint={"use": "orbax"}))


def test_a_stream_goes_on_where_the_checkpoint_left_it(recipe: Any, tmp_path: Path) -> None:
    def config(name: str) -> dict[str, Any]:
        return recipe(
            run={"steps": 5, "directory": str(tmp_path / name)},
            data={"use": "models:Stream"},
            checkpoint={"use": "orbax", "every": 2},
        )

    whole = fit(config("whole"))
    # The first batch was looked at for its shapes, and not lost by it.
    assert whole.program.data.taken == [0, 1, 2, 3, 4]
    stopping = {"stop": {"use": "models:StopAfter", "step": 2}}
    stopped, _ = recorded(config("stopped"), **stopping)
    assert stopped.program.data.taken == [0, 1, 2]
    resumed = fit(config("stopped"), accept_changes=True)  # without the recorder
    assert resumed.program.data.taken == [3, 4]
    assert_bitwise_equal(resumed.state, whole.state)


@plugin
class Asks:
    """Asks for a save after a step, as a person does who touches a file."""

    @hookimpl
    def report(self, run: Any, step: int) -> None:
        if step == 2:
            time.sleep(1.1)  # it is looked for once a second
            (run.directory / "checkpoint_now").touch()


def test_a_file_that_asks_a_run_without_checkpoints_for_one_is_answered(
    recipe: Any, caplog: pytest.LogCaptureFixture
) -> None:
    config = recipe(run={"steps": 4}, plugins={"asks": {"use": "test_loop:Asks"}})
    result = fit(config)
    [said] = [each.getMessage() for each in caplog.records if "asks" in each.getMessage()]
    assert said.startswith(f"{result.directory}/checkpoint_now asks for a checkpoint")
    assert '[checkpoint] use = "none"' in said
    assert not (result.directory / "checkpoint_now").exists()


def test_a_folder_of_that_name_is_said_once_and_asks_for_nothing(
    recipe: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "_EVERY", 0.0)
    config = recipe(run={"steps": 4}, checkpoint={"use": "orbax", "every": 2, "keep": 9})
    folder = Path(config["run"]["directory"], "checkpoint_now")
    folder.mkdir(parents=True)
    result = fit(config)
    [said] = [each.getMessage() for each in caplog.records]
    assert said == f"{folder} is a folder, and asks for nothing; `touch` makes a file"
    assert {path.name for path in (result.directory / "checkpoints").iterdir()} == {"2", "4"}


def test_a_file_in_the_run_directory_asks_for_a_save(
    recipe: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    config = recipe(
        run={"steps": 6},
        checkpoint={"use": "orbax", "every": 100, "keep": 9},
        plugins={"asks": {"use": "test_loop:Asks"}, "progress": {"style": "plain"}},
    )
    result = fit(config)
    assert capsys.readouterr().out.count("checkpoint_now: step 3 is saved\n") == 1
    saved = {path.name for path in (result.directory / "checkpoints").iterdir()}
    # Step 2 is reported when step 3 is under way; that is saved, and the last.
    assert saved == {"3", "6"}
    assert not (result.directory / "checkpoint_now").exists()
