"""Who answers the hooks of a run, and what each call takes."""

from __future__ import annotations

import json
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import attrs
import pytest
from command import PERCEPTRON

from trainer_core import fit, hookspecs
from trainer_core.cli import run
from trainer_core.cli.explain_hooks import by_hook
from trainer_core.config import load_config
from trainer_core.hook_trace import HookCall
from trainer_core.loop import train
from trainer_core.terminal.hook_lines import short_name

pytestmark = pytest.mark.usefixtures("quick_compiles")

HOOKS = [name for name in vars(hookspecs.TrainerSpec) if not name.startswith("_")]
CORE = ("trainer-core", version("trainer-core"))
QUICK = [*PERCEPTRON, "run.steps=2", "run.eval_every=0", "checkpoint.use=none"]

SOURCE = """
import time
from trainer_core import hookimpl, plugin

@plugin
class Outer:
    @hookimpl(wrapper=True)
    def step(self):
        answer = yield
        return answer

    @hookimpl(wrapper=True)
    def report(self):
        time.sleep(0.02)
        return (yield)

@plugin
class Inner:
    fails: bool = False

    @hookimpl(wrapper=True)
    def step(self):
        return (yield)

    @hookimpl
    def report(self):
        time.sleep(0.05)
        if self.fails:
            raise OSError("disk full")

    @hookimpl
    def evaluate(self):
        pass
"""
NAMED = ["plugins.inner.use=watchers:Inner", "plugins.outer.use=watchers:Outer"]


@pytest.fixture
def watchers(user_file: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Settings of a run with two plugins of the user's, the last of which is outermost."""
    user_file("watchers.py", SOURCE)
    monkeypatch.chdir(tmp_path)
    return [*QUICK, *NAMED]


def explained(*arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert run(["explain", "hooks", *arguments]) == 0
    captured = capsys.readouterr()
    own = [each.partition(".use=")[2] for each in arguments if ".use=" in each and ":" in each]
    said = [line.partition(" from ")[0] for line in captured.err.splitlines()]
    assert said == [f"note: imports {each}" for each in own]
    return captured.out


def test_explain_hooks_says_who_is_called_in_which_order_from_which_package(
    watchers: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    found = json.loads(explained(*watchers, "--json", capsys=capsys))["hooks"]
    assert [each["hook"] for each in found] == HOOKS
    hooks = {each["hook"]: each for each in found}
    assert hooks["step"]["answers"] == "one"
    assert hooks["step"]["arguments"] == ["run", "grad_fn", "optimizer", "learning_rate"]
    assert [(each["plugin"], each["role"]) for each in hooks["step"]["called"]] == [
        ("[plugins.outer] watchers:Outer", "wrapper"),
        ("[plugins.inner] watchers:Inner", "wrapper"),
        ("[step] gradient", "answer"),
    ]
    outer, _, gradient = hooks["step"]["called"]
    assert (outer["distribution"], outer["target"]) == (None, "watchers:Outer")
    assert (gradient["distribution"], gradient["version"]) == CORE
    (evaluate, core) = hooks["evaluate"]["called"]
    assert evaluate["plugin"] == "[plugins.inner] watchers:Inner"
    assert (core["plugin"], core["distribution"], core["version"]) == ("core.evaluate", *CORE)
    assert hooks["restore"]["called"][0]["plugin"] == "[checkpoint] none"


def test_explain_hooks_is_a_table_that_fits_100_columns(
    watchers: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    text = explained(*watchers, capsys=capsys)
    assert max(map(len, text.splitlines())) <= 100
    assert "\x1b" not in text
    origin = " ".join(CORE)
    assert re.search(
        r"^step +one +1 +\[plugins\.outer\] +around +watchers:Outer\n"
        r" +2 +\[plugins\.inner\] +around +watchers:Inner\n"
        rf" +3 +\[step\] gradient +{re.escape(origin)}$",
        text,
        re.MULTILINE,
    )
    assert not (tmp_path / "runs").exists()


def test_the_order_that_is_explained_is_that_of_the_calls(watchers: list[str]) -> None:
    calls: list[HookCall] = []
    config = load_config(None, [*watchers, "plugins.progress=false"])
    train(attrs.evolve(config, trace=calls.append))
    explained = by_hook(config)
    assert {each.hook for each in calls} == set(explained)
    for hook, called in explained.items():
        expected = [each.plugin for each in called]
        made = [[short_name(part.plugin) for part in call.parts] for call in of(hook, calls)]
        # `close` reaches each plugin by a call of its own.
        if hook == "close":
            made = [[name for names in made for name in names]]
        assert all(names == expected for names in made), hook


def of(hook: str, calls: list[HookCall]) -> list[HookCall]:
    return [each for each in calls if each.hook == hook]


def test_each_plugins_time_is_its_own(watchers: list[str]) -> None:
    calls: list[HookCall] = []
    config = load_config(None, [*watchers, "plugins.progress=false"])
    train(attrs.evolve(config, trace=calls.append))
    for call in of("report", calls):
        times = {part.plugin.partition(" ")[0]: part for part in call.parts}
        outer, inner = times["[plugins.outer]"], times["[plugins.inner]"]
        assert (outer.wraps, inner.wraps) == (True, False)
        # What each sleeps; the upper bound is the whole, which no part can exceed.
        assert outer.seconds >= 0.02
        assert inner.seconds >= 0.05
        assert sum(part.seconds for part in call.parts) <= call.seconds


def test_trace_prints_a_line_a_call_between_the_lines_of_the_run(
    watchers: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["train", *watchers, "--trace-hooks"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    lines = [line for line in captured.out.splitlines() if line.startswith("hook ")]
    assert all(re.match(r"hook \w+( \w+)? +\d+\.\d\d ms  \S", line) for line in lines), lines
    (step,) = [line for line in lines if line.startswith("hook step")]
    assert re.search(
        r"\[plugins\.outer\] watchers:Outer [\d.]+ around "
        r"\[plugins\.inner\] watchers:Inner [\d.]+ around \[step\] gradient [\d.]+$",
        step,
    )
    assert re.search(r"^hook report 2 .* around \(", "\n".join(lines), re.MULTILINE)
    (evaluate,) = [line for line in lines if line.startswith("hook evaluate")]
    assert re.search(r"watchers:Inner [\d.]+: None, core\.evaluate [\d.]+$", evaluate)
    assert any(line.startswith("hook phase training") for line in lines)
    assert re.search(r"^step 2/2  loss", captured.out, re.MULTILINE)


def test_trace_says_who_raised(watchers: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    settings = [*watchers, "plugins.inner.fails=true", "--trace-hooks"]
    assert run(["train", *settings]) == 1
    captured = capsys.readouterr()
    lines = [line for line in captured.out.splitlines() if line.startswith("hook report")]
    assert lines[-1].endswith("raised OSError: disk full")
    assert "raised in the hook report of [plugins.inner] watchers:Inner" in captured.err


def test_trace_with_json_is_one_object_a_call(
    watchers: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["train", *watchers, "--trace-hooks", "--json"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    calls = [each for each in events if each.get("event") == "hook"]
    (step,) = [each for each in calls if each["hook"] == "step"]
    assert [part["role"] for part in step["called"]] == ["wrapper", "wrapper", "answer"]
    assert all(each["ms"] >= 0 for each in calls)
    assert [each["step"] for each in events if "event" not in each] == [1, 2]


def test_a_trace_changes_nothing_that_is_trained_and_is_written_nowhere(
    watchers: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["train", *watchers, "--trace-hooks", "--quiet", "run.name=traced"]) == 0
    traced = (tmp_path / "runs/traced/config.toml").read_text()
    plain = fit(None, [*watchers, "plugins.progress.style=quiet", "run.name=plain"])
    assert traced.replace("traced", "plain") == (plain.directory / "config.toml").read_text()
    losses: list[list[Any]] = []
    for name in ("traced", "plain"):
        lines = (tmp_path / f"runs/{name}/metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["loss"] for line in lines])
    assert losses[0] == losses[1]
