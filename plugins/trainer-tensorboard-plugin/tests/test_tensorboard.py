"""What stands in an event file, as TensorBoard itself reads it."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.hparams import metadata
from trainer_tensorboard.events import EventFile
from trainer_tensorboard.names import tag_of

from trainer_core import fit
from trainer_core.testing import PluginSuite
from trainer_core.testing.suite import SMALL

pytestmark = pytest.mark.usefixtures("quick_compiles")


@pytest.mark.long
class TestTensorBoard(PluginSuite):
    use = "tensorboard"


def read(folder: Path) -> EventAccumulator:
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    return found.Reload()


def points(events: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    return [(each.step, each.value) for each in events.Scalars(tag)]


def as_float32(value: float) -> float:
    return struct.unpack("f", struct.pack("f", value))[0]


def recipe(folder: Path, **tables: Any) -> dict[str, Any]:
    run = {**SMALL["run"], "directory": str(folder), **tables.pop("run", {})}
    plugins = {"progress": False, "jsonl": True, "tensorboard": {}}
    return {**SMALL, "run": run, "plugins": {**plugins, **tables.pop("plugins", {})}, **tables}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, quick_compiles: None) -> Path:
    """The directory of a run of four steps that is evaluated twice."""
    folder = tmp_path_factory.mktemp("runs") / "four"
    fit(recipe(folder, run={"steps": 4, "eval_every": 2}))
    return folder


def test_every_number_of_every_reported_step_is_drawn(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    events = read(run)
    expected: dict[str, list[tuple[int, float]]] = {}
    for line in lines:
        for name, value in line.items():
            if name != "step":
                expected.setdefault(tag_of(name), []).append((line["step"], as_float32(value)))
    assert {tag: points(events, tag) for tag in events.Tags()["scalars"]} == expected
    assert [step for step, _ in expected["eval/loss"]] == [2, 4]
    assert len(list(run.glob("events.out.tfevents.*"))) == 1


@pytest.mark.parametrize(
    ("metric", "tag"),
    [
        ("loss", "loss"),
        ("loss/squares", "loss/squares"),
        ("eval_loss", "eval/loss"),
        ("eval_loss/squares", "eval/loss/squares"),
        ("eval_loss_of_average", "eval/loss_of_average"),
        ("grad_norm", "optimizer/grad_norm"),
        ("tokens_per_second", "speed/tokens_per_second"),
        ("mine/norm", "mine/norm"),
        ("param_norm", "metrics/param_norm"),
    ],
)
def test_names_are_grouped(metric: str, tag: str) -> None:
    assert tag_of(metric) == tag


def test_the_config_is_a_text_and_hyperparameters(run: Path) -> None:
    events = read(run)
    (text,) = events.Tensors("config/text_summary")
    (shown,) = text.tensor_proto.string_val
    assert "    run.steps = 4\n" in shown.decode()
    assert all(line.startswith("    ") for line in shown.decode().splitlines())
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    hparams = metadata.parse_session_start_info_plugin_data(content).hparams
    assert hparams["run.steps"].number_value == 4
    assert hparams["optimizer.use"].string_value
    assert hparams["checkpoint.use"].string_value == "none"
    assert not [key for key in hparams if key.startswith("distributed.")]
    content = events.SummaryMetadata("_hparams_/experiment").plugin_data.content
    experiment = metadata.parse_experiment_plugin_data(content)
    assert [each.name.tag for each in experiment.metric_infos] == ["loss", "eval/loss"]
    events.SummaryMetadata("_hparams_/session_end_info")  # a KeyError where there is none


def test_a_number_that_is_not_finite_is_drawn_as_what_it_is(tmp_path: Path) -> None:
    file = EventFile(tmp_path, 0)
    file.scalars(1, {"loss": float("nan")})
    file.scalars(2, {"loss": float("-inf")})
    (_, first), (_, second) = points(read(tmp_path), "loss")
    assert math.isnan(first)
    assert second == -math.inf


def test_what_was_reported_is_there_before_the_file_is_closed(tmp_path: Path) -> None:
    file = EventFile(tmp_path, 0)
    for step in range(1, 4):
        file.scalars(step, {"loss": step})
        assert points(read(tmp_path), "loss")[-1] == (step, step)


def test_a_file_that_is_begun_again_takes_back_what_lies_past_it_whatever_the_clock_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([2_000_000_000.0, 1_000_000_000.0, 1_000_000_000.5])
    now = [0.0]
    monkeypatch.setattr("trainer_tensorboard.events.time.time", lambda: now[0])
    for first, last in ((0, 5), (3, 6), (4, 8)):  # set back, then twice within a second
        now[0] = next(times)
        file = EventFile(tmp_path, first)
        for step in range(first + 1, last + 1):
            file.scalars(step, {"loss": 10 * first + step})
    assert len(list(tmp_path.iterdir())) == 3
    expected = [(1, 1), (2, 2), (3, 3), (4, 34), (5, 45), (6, 46), (7, 47), (8, 48)]
    assert points(read(tmp_path), "loss") == expected


def test_a_run_that_fails_is_closed_and_not_marked_as_whole(tmp_path: Path) -> None:
    from trainer_tensorboard.plugin import TensorBoard

    for name, error in (("whole", None), ("failed", OSError("disk full"))):
        folder = tmp_path / name
        folder.mkdir()
        plugin = TensorBoard()
        plugin.file = EventFile(folder, 0)
        plugin.file.config(0, {"run": {"steps": 1}}, ["loss"])
        plugin.close(error)
        (path,) = folder.iterdir()
        tags = [
            value.tag
            for event in EventFileLoader(str(path)).Load()
            for value in event.summary.value
        ]
        assert ("_hparams_/session_end_info" in tags) == (error is None)


def test_of_several_processes_only_the_first_writes(tmp_path: Path) -> None:
    from types import SimpleNamespace

    from trainer_tensorboard.plugin import TensorBoard

    other: Any = SimpleNamespace(is_main=False, directory=tmp_path, config={})
    plugin = TensorBoard()
    plugin.start(other, 0)
    plugin.report(1, {"loss": 1.0})
    plugin.close(None)
    assert not list(tmp_path.iterdir())
