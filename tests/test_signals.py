"""Ctrl-C and SIGTERM, in every phase of a real process."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
from command import DECODER, PERCEPTRON, Interrupting, read_until, running, trainer

from trainer_core.cli import run
from trainer_core.signals import Interrupted, SignalHandlers, interruptible

# A plugin that says where a run is, and stays there until a second after it is asked to stop.
PAUSE = """
import os, sys, time
import importlib.abc, importlib.machinery
from trainer_core import hookimpl, plugin, setting

AT = os.environ["PAUSE_AT"]

def pause(place, stopping=False):
    if place == AT:
        print("at", place, flush=True)
        end = time.monotonic() + 60
        while time.monotonic() < end:
            time.sleep(0.02)
            if stopping:
                end = min(end, time.monotonic() + 1)
                stopping = False

class SlowImport(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "jax":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        load = spec.loader.exec_module
        spec.loader.exec_module = lambda module: (pause("importing"), load(module))
        return spec

sys.meta_path.insert(0, SlowImport())
pause("reading the config")

@plugin
class Pause:
    @hookimpl(wrapper=True)
    def accumulate(self):
        grad_fn = yield
        def slow(*arguments):  # traced in the thread that compiles
            pause("compiling")
            return grad_fn(*arguments)
        return slow

    @hookimpl
    def report(self, run, step):
        if step == 3:
            pause("training", "FOREVER" not in os.environ and run.stopping)

    @hookimpl
    def close(self, run):
        pause("closing", run.stopping)
"""
# Evaluates and saves at every fourth step, and would never end.
PAUSED = ["plugins.pause.use=pause:Pause", "run.directory=run"]
ENDLESS = [*PERCEPTRON, *PAUSED, "run.steps=1000000", "run.eval_every=4", "checkpoint.every=4"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pause.py").write_text(PAUSE)
    return tmp_path


def interrupt(
    folder: Path, at: str, number: int = signal.SIGINT, settings: list[str] = ENDLESS
) -> tuple[int, str, float]:
    """Return the exit code, all output, and the seconds from the signal to the end."""
    with running("train", *settings, folder=folder, PAUSE_AT=at) as process:
        before = read_until(process, f"at {at}")
        process.send_signal(number)
        sent = time.monotonic()
        assert process.stdout is not None
        output = before + process.stdout.read()
        return process.wait(), output, time.monotonic() - sent


def steps_done(run: Path) -> int:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return int(json.loads(lines[-1])["step"])


def checkpoints(run: Path) -> list[int]:
    names = [path.name for path in (run / "checkpoints").iterdir()]
    return sorted(int(name) for name in names if name.isdigit())


@pytest.mark.parametrize("at", ["reading the config", "importing", "compiling"])
def test_ctrl_c_before_the_first_step_exits_0_and_writes_nothing(folder: Path, at: str) -> None:
    before = set(folder.iterdir())
    settings = ENDLESS if at == "compiling" else PAUSED  # the perceptron's file imports jax
    code, output, seconds = interrupt(folder, at, settings=settings)
    assert code == 0, output
    assert "stopped before the first step; nothing was changed" in output
    assert "Traceback" not in output
    assert set(folder.iterdir()) - before <= {folder / "__pycache__"}
    assert seconds < 10  # it waits for no compilation


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal."""
    status = Path(f"/proc/{pid}/status")
    if not status.parent.parent.exists():  # not Linux, where nobody can tell
        return True
    caught = int(status.read_text().split("SigCgt:")[1].split()[0], 16)
    return bool(caught & 1 << (number - 1))


def test_ctrl_c_at_any_moment_of_the_start_crashes_nothing(folder: Path) -> None:
    # Where jax's C++ calls back into Python, an exception from a signal handler is a crash; when
    # that is depends on the machine, so the moments are spread over the whole import.
    for delay in (0.0, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 1.2):
        with running("train", *DECODER, "run.steps=100000", folder=folder) as process:
            while not catches(process.pid, signal.SIGTERM):  # until Python itself is imported
                time.sleep(0.002)
            time.sleep(delay)
            process.send_signal(signal.SIGINT)
            output, _ = process.communicate()
        assert process.returncode in (0, 130), f"after {delay} s: {output}"
        assert "Traceback" not in output
        assert "Exception ignored" not in output


def test_the_first_ctrl_c_of_a_run_that_stops_already_lets_it_save() -> None:
    with SignalHandlers() as signals:
        stopping = signals.stopping
        stopping.set("stopped by a plugin")
        stopping.defer()
        signal.raise_signal(signal.SIGINT)  # a second one would end this process
    assert stopping.reason == "stopped by a plugin"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_saves_the_last_finished_step_and_exits_0(
    folder: Path, number: signal.Signals
) -> None:
    code, output, _ = interrupt(folder, "training", number)
    assert code == 0, output
    step = steps_done(folder / "run")
    assert step < 8
    assert checkpoints(folder / "run")[-1] == step
    name = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}[number]
    assert f"{name} stops after this step and saves" in output
    assert f"stopped     by {name}, after step {step} of 1,000,000" in output
    assert "Traceback" not in output
    if number == signal.SIGTERM:
        return

    # The same command goes on.
    again = trainer("train", *ENDLESS, f"run.steps={step + 1}", folder=folder, PAUSE_AT="nowhere")
    assert again.returncode == 0, again.stderr
    assert f"from the checkpoint of step {step}" in again.stdout
    assert steps_done(folder / "run") == step + 1


@pytest.mark.parametrize("hook", ["start", "report", "evaluate", "save"])
def test_ctrl_c_in_any_hook_saves_the_step_and_exits_0(
    hook: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(Interrupting, "hook", hook)
    assert (
        run(
            [
                "train",
                *ENDLESS,
                "run.steps=40",
                "plugins.pause=false",
                "plugins.i.use=command:Interrupting",
            ]
        )
        == 0
    )
    output = capsys.readouterr().out
    step = steps_done(folder / "run")
    assert checkpoints(folder / "run")[-1] == step
    assert f"stopped     by Ctrl-C, after step {step} of" in output


def test_ctrl_c_while_closing_cuts_off_no_save(folder: Path) -> None:
    code, output, _ = interrupt(folder, "closing", settings=[*ENDLESS, "run.steps=4"])
    assert code == 0, output
    assert checkpoints(folder / "run") == [4]
    assert "done        4 steps" in output
    assert "Traceback" not in output


def test_ctrl_c_while_a_finished_run_closes_does_no_harm(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(Interrupting, "hook", "close")
    settings = [
        *ENDLESS,
        "run.steps=40",
        "plugins.pause=false",
        "plugins.i.use=command:Interrupting",
    ]
    for _ in range(2):
        assert run(["train", *settings, "run.steps=2"]) == 0
        assert "checkpoint  step 2 in run/checkpoints" in capsys.readouterr().out


def test_second_ctrl_c_exits_at_once_and_loses_no_checkpoint(folder: Path) -> None:
    settings = [*ENDLESS, "checkpoint.every=1"]
    variables = {"PAUSE_AT": "training", "FOREVER": "1"}
    with running("train", *settings, folder=folder, **variables) as process:
        read_until(process, "at training")
        process.send_signal(signal.SIGINT)
        read_until(process, "Ctrl-C stops after this step and saves")
        sent = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130
        assert time.monotonic() - sent < 10
    assert 1 in checkpoints(folder / "run")


def test_signal_before_there_is_anything_to_keep_raises_where_the_run_stands() -> None:
    with SignalHandlers() as signals, pytest.raises(Interrupted):
        signal.raise_signal(signal.SIGTERM)
    assert signals.stopping.reason == "SIGTERM"


def test_signal_while_training_only_asks_for_a_stop() -> None:
    before = signal.getsignal(signal.SIGINT)
    with SignalHandlers() as signals:
        signals.stopping.defer()
        signal.raise_signal(signal.SIGINT)
    assert signals.stopping.reason == "Ctrl-C"
    assert signal.getsignal(signal.SIGINT) is before


def test_run_in_another_thread_leaves_the_handlers_alone() -> None:
    found: list[object] = []

    def enter() -> None:
        with SignalHandlers():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGINT)]


def test_interruptible_work_returns_and_raises_as_if_called() -> None:
    assert interruptible(lambda: 7) == 7

    def fail() -> None:
        raise subprocess.SubprocessError("as it is")

    with pytest.raises(subprocess.SubprocessError, match="as it is"):
        interruptible(fail)
