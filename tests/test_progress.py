"""What a person sees of a run: figures, lines, the live view, heartbeats."""

from __future__ import annotations

import io
import json
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optax
import programs
import pytest
from command import PERCEPTRON
from rich.console import Console
from terminals import on_terminal

from trainer_core import fit
from trainer_core.cli import run
from trainer_core.defaults.progress import Progress, make_display
from trainer_core.run import StopRequest
from trainer_core.signals import Interrupted
from trainer_core.terminal import figures, plain, summary
from trainer_core.terminal.lines import step_line
from trainer_core.terminal.live import LiveDisplay
from trainer_core.terminal.pace import Pace
from trainer_core.terminal.page import Page
from trainer_core.terminal.plain import PlainDisplay
from trainer_core.terminal.summary import resumed_rows, schedule_rows, summary_rows

METRICS = {
    "loss": 1.83424,
    "grad_norm": 0.41234,
    "learning_rate": 8.114e-4,
    "_first_nonfinite": -1,
    "skipped_steps": 0,
    "loss_spikes": 0,
    "tokens": 1_277_952,
    "tokens_per_second": 12_345.6,
    "seconds": 103.5,
}


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A run of 300 steps, as far as a display looks at it, whose summary is two rows."""
    monkeypatch.setattr(summary, "summary_rows", lambda *_: [("optimizer", "small"), ("run", "r")])
    return SimpleNamespace(settings=SimpleNamespace(steps=300), stopping=StopRequest())


@pytest.mark.parametrize(
    ("show", "number", "text"),
    [
        (figures.short, 0, "0"),
        (figures.short, 987, "987"),
        (figures.short, 999.6, "1.00k"),
        (figures.short, 12_345, "12.3k"),
        (figures.short, 1_234_567, "1.23M"),
        (figures.short, 8.03e9, "8.03B"),
        (figures.amount, 820_608, "820,608"),
        (figures.amount, 1_064_000, "1.06 M"),
        (figures.amount, 70.6e9, "70.6 B"),
        (figures.duration, 42.4, "0:42"),
        (figures.duration, 3723, "1:02:03"),
        (figures.duration, 93_600, "1 d 02:00"),
        (figures.span, 0.2404, "0.24 s"),
        (figures.span, 42, "42 s"),
        (figures.span, 72, "1:12"),
        (figures.loss, 1.83424, "1.8342"),
        (figures.loss, 123_456.0, "1.2346e+05"),
        (figures.loss, float("nan"), "nan"),
        (figures.norm, 0.41234, "0.412"),
        (figures.norm, 12.3456, "12.35"),
        (figures.norm, 123_456.0, "1.2e+05"),
        (figures.norm, float("inf"), "inf"),
        (figures.plain, 12_345, "12,345"),
        (figures.plain, 0.123456, "0.1235"),
    ],
)
def test_figures_have_few_digits_and_a_unit(
    show: Callable[[float], str], number: float, text: str
) -> None:
    assert show(number) == text


def text_of(parts: list[Any]) -> str:
    return "".join(part if isinstance(part, str) else part[0] for part in parts)


def test_step_line_holds_what_matters_in_its_order() -> None:
    line = text_of(step_line(312, 700, {**METRICS, "eval_loss": 1.921}, left=42.0))
    assert line == (
        "step 312/700  loss 1.8342  eval 1.9210  lr 8.11e-04  grad 0.412  12.3k tokens/s  0:42 left"
    )


def test_fields_of_step_lines_stand_below_each_other() -> None:
    lines = [text_of(step_line(step, 1_000_000, METRICS)) for step in (7, 1_234, 999_999)]
    assert len({line.index("loss") for line in lines}) == 1
    assert len({line.index("tokens/s") for line in lines}) == 1


def test_longest_ordinary_step_line_fits_100_columns() -> None:
    metrics = {**METRICS, "grad_norm": 999.9}
    assert len(text_of(step_line(1_000_000, 1_000_000, metrics, left=9_999))) <= 100
    assert len(text_of(step_line(1_000_000, 1_000_000, {**metrics, "eval_loss": 10.9}))) <= 100


def test_metrics_of_plugins_are_shown_and_those_with_an_underscore_are_not() -> None:
    line = text_of(step_line(1, 2, {"loss/z": 0.5, "gradient_noise": 3, "_secret": 4.0}))
    assert line == "step 1/2  loss/z 0.5  gradient_noise 3"


@pytest.mark.parametrize(
    ("metric", "shown"), [("skipped_steps", "skipped"), ("loss_spikes", "spikes")]
)
def test_counts_of_bad_steps_are_shown_once_there_are_any(metric: str, shown: str) -> None:
    assert shown not in text_of(step_line(1, 2, {metric: 0}))
    assert f"{shown} 3" in text_of(step_line(1, 2, {metric: 3}))


def test_time_left_follows_the_pace_of_the_last_minute() -> None:
    pace = Pace(1000)
    pace.add(1, 0.0)
    assert pace.seconds_left(0.0) is None
    for step in range(2, 101):
        pace.add(step, (step - 1) * 1.0)
    assert pace.seconds_left(99.0) == pytest.approx(900)
    assert pace.seconds_left(109.0) == pytest.approx(890)
    for step in range(101, 300):  # ten times as fast now
        pace.add(step, 99 + (step - 100) * 0.1)
    for step in range(300, 1000):
        pace.add(step, 118.9 + (step - 299) * 0.1)
    assert pace.steps_per_second == pytest.approx(10, rel=0.01)


def test_shown_rate_is_smooth_and_forgets_the_first_step() -> None:
    pace = Pace(100)
    pace.add(1, 0.0, 10.0)
    pace.add(2, 0.1, 1000.0)
    assert pace.tokens_per_second == 1000.0
    pace.add(3, 0.2, 2000.0)
    assert 1000 < pace.tokens_per_second < 1100
    pace.add(4, 30.2, 2000.0)
    assert pace.tokens_per_second == pytest.approx(2000, rel=1e-3)


def test_plain_lines_come_by_the_clock_at_evaluations_and_for_first_and_last_step(
    watched: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(plain, "time", SimpleNamespace(monotonic=lambda: clock.now))
    display = PlainDisplay(every=5.0)
    display.start(watched, 0)
    for step in range(1, 301):
        clock.now += 0.125
        display.report(step, METRICS | ({"eval_loss": 2.0} if step == 70 else {}))
    display.close()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step")]
    steps = [int(line[5:8]) for line in lines]
    assert steps == [1, 41, 70, 110, 150, 190, 230, 270, 300]
    assert "eval 2.0000" in lines[2]
    assert lines[1].endswith("0:32 left")
    assert "left" not in lines[2] + lines[-1]


def test_silent_phase_shows_a_sign_of_life(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plain.HEARTBEAT <= 12
    monkeypatch.setattr(plain, "HEARTBEAT", 0.3)
    display = PlainDisplay(every=5.0)
    display.phase("building")
    display.phase("compiling")
    time.sleep(1.2)
    display.close()
    lines = capsys.readouterr().out.splitlines()
    assert 2 <= len(lines) <= 4
    assert all(re.fullmatch(r"compiling \.\.\. [01] s", line) for line in lines)


def test_plain_display_says_once_that_it_was_asked_to_stop(
    watched: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    display = PlainDisplay(every=5.0)
    display.phase("training")
    display.start(watched, 0)
    watched.stopping.set("SIGTERM")
    time.sleep(0.6)
    display.close()
    assert capsys.readouterr().out.count("SIGTERM stops after this step and saves") == 1


def live_lines(display: LiveDisplay, width: int, encoding: str = "utf-8") -> list[str]:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=file, width=width, force_terminal=True)
    return [text.plain for text in display.__rich_console__(console, console.options)]


@pytest.mark.parametrize("width", [20, 40, 80, 100, 200])
def test_live_view_fits_any_width_and_stays_within_100_columns(watched: Any, width: int) -> None:
    display = LiveDisplay()
    display._phase = ("training", time.monotonic())
    display.start(watched, 0)
    for step in (1, 2):
        display.report(step, METRICS | {"loss/cross_entropy": 1.8, "loss/penalty": 0.03})
    lines = live_lines(display, width)
    assert max(map(len, lines)) <= min(width, 100)
    assert display._live.is_started is False


def test_live_view_shows_step_loss_rate_and_last_evaluation(watched: Any) -> None:
    display = LiveDisplay()
    display._phase = ("training", time.monotonic())
    display.start(watched, 0)
    display.report(149, METRICS | {"eval_loss": 1.95})
    time.sleep(0.01)
    display.report(150, METRICS)
    gap, bar, numbers = live_lines(display, 100)
    assert gap == ""
    assert re.fullmatch(r". training +━+─+  150/300 +\d:\d\d left", bar)
    assert abs(bar.count("━") - bar.count("─")) <= 1  # half of it is done
    assert numbers == ("  loss 1.8342  eval 1.9500  lr 8.11e-04  grad 0.412  12.3k tokens/s")
    watched.stopping.set("Ctrl-C")
    assert live_lines(display, 100)[-1].startswith("  Ctrl-C stops after this step and saves")


def test_live_view_counts_the_seconds_of_a_silent_phase() -> None:
    display = LiveDisplay()
    display._phase = ("compiling", time.monotonic() - 65)
    assert live_lines(display, 100)[0][2:] == "compiling 1:05"


def test_live_view_needs_no_unicode(watched: Any) -> None:
    display = LiveDisplay()
    display._phase = ("training", time.monotonic())
    display.start(watched, 0)
    display.report(100, METRICS)
    assert "".join(live_lines(display, 100, encoding="ascii")).isascii()


def test_page_wraps_values_below_themselves(capsys: pytest.CaptureFixture[str]) -> None:
    Page().rows([("label", "word " * 30), ("l", "first\nsecond")])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[0].startswith("label  word")
    assert lines[1].startswith("       word")
    assert lines[2:] == ["l      first", "       second"]


def test_display_is_the_one_that_the_style_names(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [
        type(make_display(style, 5.0)).__name__
        for style in ("auto", "plain", "live", "json", "quiet")
    ]
    assert names == ["PlainDisplay", "PlainDisplay", "LiveDisplay", "JsonDisplay", "QuietDisplay"]


def test_only_the_main_process_shows_anything(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(style="json")
    other: Any = SimpleNamespace(is_main=False)
    progress.phase(other, "training", None)
    progress.start(other, 0)
    progress.report(other, 1, METRICS)
    progress.close()
    assert capsys.readouterr().out == ""


def test_summary_names_model_devices_optimizer_place_and_start() -> None:
    parts = programs.build(programs.recipe(run={"steps": 1200}))
    rows = dict([*summary_rows(parts.run, parts.program), *resumed_rows(parts.run, 7)])
    assert rows["model"].startswith("models:Perceptron, 288 parameters")
    assert rows["batch"] == "16 examples a step"
    assert rows["devices"].endswith("x CPU")
    assert rows["optimizer"].startswith("adamw, constant schedule, peak learning rate 0.1")
    assert rows["run"] == "runs/default, 1,200 steps"
    assert rows["resumed"] == "from the checkpoint of step 7"


@pytest.mark.eight_devices
@pytest.mark.parametrize(
    ("axis", "batch"),
    [("data", "16 examples a step"), ("tensor", "16 examples a step, the same on all 8 devices")],
)
def test_a_batch_that_no_axis_divides_is_said_to_be_on_every_device(axis: str, batch: str) -> None:
    mesh = {"data": 1, "fsdp": 1, "tensor": 1, axis: 8}
    parts = programs.build(programs.recipe(shard={"mesh": mesh}))
    assert dict(summary_rows(parts.run, parts.program))["batch"] == batch


@pytest.mark.parametrize(
    ("steps", "skipped", "said"),
    [
        (12, 0, []),
        (12, 3, []),
        (
            20,
            0,
            [("schedule", "another from here on: the learning rate is 2.99e-02, and was 0.00e+00")],
        ),
        (
            20,
            3,
            [("schedule", "another from here on: the learning rate is 5.41e-02, and was 1.73e-02")],
        ),
    ],
)
def test_a_run_whose_schedule_is_stretched_says_where_its_rate_jumps(
    steps: int, skipped: int, said: list[Any], tmp_path: Path
) -> None:
    def schedule(steps: int) -> Any:
        return optax.cosine_decay_schedule(0.1, steps - 1)

    lines = [{"step": 11}, {"step": 12, "learning_rate": float(schedule(12)(11 - skipped))}]
    lines[1]["skipped_steps"] = skipped
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    run: Any = SimpleNamespace(directory=tmp_path)
    program: Any = SimpleNamespace(schedule=schedule(steps))
    assert schedule_rows(run, program, 12) == said
    (tmp_path / "metrics.jsonl").unlink()
    assert schedule_rows(run, program, 12) == []


def test_what_a_run_is_is_shown_once_before_it_is_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["train", *PERCEPTRON, "checkpoint.use=none", "run.steps=1", "--trace-hooks"]) == 0
    lines = capsys.readouterr().out.splitlines()
    begins = ["hook phase restoring", "model ", "run ", "hook phase compiling", "hook start"]
    places = [next(at for at, line in enumerate(lines) if line.startswith(each)) for each in begins]
    assert places == sorted(places)
    assert sum(line.startswith("optimizer ") for line in lines) == 1


def test_ctrl_c_while_its_thread_begins_stops_no_display(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(thread: threading.Thread) -> None:
        raise Interrupted

    display = PlainDisplay(every=5.0)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(Interrupted):
            display.phase("compiling")
    display.close()


@pytest.mark.parametrize("step", [0, 7])
def test_a_run_that_goes_on_says_so_below_what_it_is(
    watched: Any, step: int, capsys: pytest.CaptureFixture[str]
) -> None:
    watched.devices = watched.devices_before = "1 x CPU"
    watched.directory = Path("nowhere")
    display = PlainDisplay(every=5.0)
    display.show(watched, SimpleNamespace())
    display.show(watched, SimpleNamespace())
    display.start(watched, step)
    display.close()
    lines = capsys.readouterr().out.splitlines()
    resumed = ["resumed    from the checkpoint of step 7"] if step else []
    assert lines == ["optimizer  small", "run        r", *resumed, ""]


def test_live_view_parts_what_it_redraws_from_what_the_run_is(watched: Any) -> None:
    display = LiveDisplay()
    display.phase("compiling")
    display.show(watched, SimpleNamespace())
    assert live_lines(display, 100)[0] == ""
    display.start(watched, 0)  # leaves a blank line of its own
    assert live_lines(display, 100)[0] != ""
    display.close()


def test_going_on_with_other_devices_says_so(recipe: Any, tmp_path: Path) -> None:
    """The run directory knows what it was trained on."""
    fit(recipe(run={"steps": 1}))
    parts = programs.build(recipe())
    assert parts.run.devices_before == parts.run.devices
    versions = tmp_path / "run/versions.json"
    before = json.loads(versions.read_text()) | {"devices": "8 x CPU, mesh fsdp 8"}
    versions.write_text(json.dumps(before))
    parts = programs.build(recipe())
    rows = dict(resumed_rows(parts.run, 1))
    assert rows["resumed"] == "from the checkpoint of step 1, made on 8 x CPU, mesh fsdp 8"


def test_terminal_gets_a_live_view_and_its_cursor_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = [*PERCEPTRON, "checkpoint.use=none", "run.steps=6", "run.eval_every=3"]
    written, text = on_terminal(["train", *settings], 0, monkeypatch)
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l")
    assert "compiling" in text
    assert "step 3/6" in text
    assert "done" in text
    assert max(map(len, re.split(r"[\r\n]+", text))) <= 100


def test_terminal_gets_its_cursor_back_after_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = [*PERCEPTRON, "checkpoint.use=none", "data.nan_loss=[0]", "step.max_skipped=1"]
    written, _ = on_terminal(["train", *settings], 1, monkeypatch)
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l")


def test_hook_calls_pass_above_the_live_view(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = [*PERCEPTRON, "checkpoint.use=none", "run.steps=4", "run.eval_every=2"]
    written, text = on_terminal(["train", *settings, "--trace-hooks"], 0, monkeypatch, 200)
    lines = [line for line in re.split(r"[\r\n]+", text) if "hook " in line]
    # Each stands on a line of its own: nothing of the view before it or after it.
    pattern = r"hook \w+( \w+)? +[\d.]+ ms  .*[\d.]+(: None)?"
    assert len(lines) > 20
    assert not [line for line in lines if not re.fullmatch(pattern, line.rstrip())]
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l")
