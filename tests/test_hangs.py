"""A process that hangs is named by the others, which end within the timeout."""

from __future__ import annotations

import queue
import re
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from command import PERCEPTRON
from processes import Ended, ended, started, together

from trainer_core import watch
from trainer_core.signs import Failure, Sign

pytestmark = pytest.mark.aside

TIMEOUT = 10
PATIENCE = 5  # of its seconds, until one that is not heard of is named
# In one process only, at one place, something never ends.
HANG = """
import os, signal, time
from trainer_core import hookimpl, plugin, setting

@plugin
class Hang:
    process: int = setting(1)
    at: str = setting("training")
    how: str = setting("stop")

    def hang(self, run, at):
        if (run.process, at) == (self.process, self.at):
            if self.how == "stop":
                watch = run.group._watch
                last = watch._sign.number + 3  # the next says where it is, to who looks meanwhile
                while watch._sign.number < last:
                    time.sleep(0.05)
                open("hangs", "w").close()
                os.kill(os.getpid(), signal.SIGSTOP)
            if self.how == "sleep":
                open("hangs", "w").close()
                time.sleep(1000)
            if self.how == "raise":
                raise RuntimeError("no fuel")
            if self.how == "work":
                end = time.monotonic() + 20
                while time.monotonic() < end:
                    pass

    @hookimpl
    def phase(self, run, name):
        if name != "training":
            self.hang(run, name)

    @hookimpl
    def report(self, run, step):
        if step == 3:
            self.hang(run, "training")
"""
TRAIN = ["train", *PERCEPTRON, "run.directory=run", f"distributed.timeout={TIMEOUT}"]
ENDLESS = [*TRAIN, "run.steps=100000", "run.eval_every=0", "checkpoint.every=100000"]


def hung(folder: Path, *settings: str, process: int = 1) -> tuple[Ended, float]:
    """Return how the other of two processes ended, and how long after the one began to hang."""
    (folder / "hang.py").write_text(HANG)
    plugin = f"plugins.hang={{use='hang:Hang', process={process}}}"
    with started(2, *ENDLESS, plugin, *settings, folder=folder) as running:
        while not (folder / "hangs").exists():
            assert running[1 - process].poll() is None, (folder / f"err-{1 - process}").read_text()
            time.sleep(0.05)
        began = time.monotonic()
        running[1 - process].wait(timeout=60)
        seconds = time.monotonic() - began
        running[process].kill()
        return ended(running, folder)[1 - process], seconds


class Lame:
    """Stands in for the board of process 0, of which one entry cannot be understood."""

    process = 0

    def __init__(self) -> None:
        self.said: list[Failure] = []

    def give(self, sign: Sign) -> None:
        return

    def failures(self) -> list[Failure]:
        return []

    def signs(self) -> dict[int, Sign]:
        raise KeyError("host")

    def fail(self, failure: Failure) -> None:
        self.said.append(failure)


def test_an_error_of_the_watch_ends_the_process_and_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: queue.Queue[Sequence[str]] = queue.Queue()
    monkeypatch.setattr(watch, "LOOK", 0.05)
    monkeypatch.setattr(watch, "end_hard", lambda lines, *_: ended.put(lines))
    board: Any = Lame()
    watching = watch.Watch(board, 2, TIMEOUT, tmp_path)
    [line] = ended.get(timeout=60)
    watching.end()
    assert re.fullmatch(
        rf"process 0 failed: KeyError: 'host', at {re.escape(__file__)}:\d+, in signs", line
    )
    assert [str(each) for each in board.said] == [line]


def assert_named(found: Ended, seconds: float, process: int, where: str) -> None:
    assert found.code == 1, found
    assert seconds <= TIMEOUT
    said = rf"error: process {process} \(.*\) gave no sign of life for .*; it was last seen {where}"
    assert re.match(said, found.err), found.err


def test_a_process_that_is_stopped_while_training_is_named_with_its_phase(tmp_path: Path) -> None:
    found, seconds = hung(tmp_path)
    assert_named(found, seconds, 1, "training, after step 3")
    stacks = (tmp_path / "run" / "stacks-0.txt").read_text()
    assert "loop.py" in stacks  # of the main thread
    assert "where this process was: run/stacks-0.txt" in found.err
    assert "Aborted" not in found.err  # it is not JAX that ends it


@pytest.mark.long
@pytest.mark.parametrize("at", ["building", "compiling", "evaluating", "saving", "closing"])
def test_a_process_that_is_stopped_in_any_phase_is_named(at: str, tmp_path: Path) -> None:
    settings = [f"plugins.hang.at={at}", "run.steps=4"]
    found, seconds = hung(tmp_path, *settings)
    assert_named(found, seconds, 1, at)


@pytest.mark.long
@pytest.mark.parametrize("process", [0, 1])
def test_a_process_that_is_stopped_while_it_restores_is_named(process: int, tmp_path: Path) -> None:
    alone = together(2, *TRAIN, "run.steps=2", folder=tmp_path)
    assert [each.code for each in alone] == [0, 0]
    # Whichever it is: process 0 has what connects them.
    found, seconds = hung(tmp_path, "plugins.hang.at=restoring", process=process)
    assert_named(found, seconds, process, "restoring")


@pytest.mark.long
def test_a_process_0_that_is_stopped_while_training_is_named(tmp_path: Path) -> None:
    found, seconds = hung(tmp_path, process=0)
    assert_named(found, seconds, 0, "training, after step 3")
    assert (tmp_path / "run" / "stacks-1.txt").read_text()


@pytest.mark.long
def test_a_process_that_is_stopped_before_the_others_meet_is_named(tmp_path: Path) -> None:
    with started(2, *ENDLESS, folder=tmp_path) as running:
        running[1].send_signal(signal.SIGSTOP)
        assert running[0].wait(timeout=60) == 2
        running[1].kill()
        text = ended(running, tmp_path)[0].err
    assert text.startswith("error: 1 of 2 processes did not come to localhost:"), text
    assert f"within {TIMEOUT} seconds ([distributed] timeout): process 1;" in text


@pytest.mark.long
def test_a_process_that_waits_for_ever_is_named_and_both_write_their_stacks(tmp_path: Path) -> None:
    (tmp_path / "hang.py").write_text(HANG)
    processes = together(
        2, *ENDLESS, "plugins.hang={use='hang:Hang', how='sleep'}", folder=tmp_path
    )
    assert [each.code for each in processes] == [1, 1]
    for each in processes:
        assert re.match(
            rf"error: process 1 \(.*\) stands still, and the others wait for it, for {PATIENCE} "
            r"seconds .*: "
            r"it is training, after step 3; where, stands in run/stacks-1.txt\n"
            r"error: where this process was: run/stacks-\d.txt\n$",
            each.err,
        ), each.err
    assert "hang.py" in (tmp_path / "run" / "stacks-1.txt").read_text()
    assert (tmp_path / "run" / "stacks-0.txt").exists()


@pytest.mark.long
@pytest.mark.parametrize("at", ["training", "evaluating"])
def test_a_process_that_works_for_longer_than_the_timeout_is_waited_for(
    at: str, tmp_path: Path
) -> None:
    (tmp_path / "hang.py").write_text(HANG)
    plugin = f"plugins.hang={{use='hang:Hang', how='work', at='{at}'}}"
    processes = together(2, *TRAIN, "run.steps=5", plugin, folder=tmp_path)
    assert [(each.code, each.err) for each in processes] == [(0, ""), (0, "")]


@pytest.mark.long
def test_one_that_fails_says_of_a_busy_one_that_it_is_told_and_not_that_it_hangs(
    tmp_path: Path,
) -> None:
    (tmp_path / "hang.py").write_text(HANG)
    plugins = [
        "plugins.busy={use='hang:Hang', how='work', process=0}",
        "plugins.fails={use='hang:Hang', how='raise', process=1}",
    ]
    processes = together(2, *ENDLESS, *plugins, folder=tmp_path)
    assert [each.code for each in processes] == [1, 1], processes
    assert re.search(
        r"process 0 \(.*\), training, after step \d, is told, and ends within 6 seconds\n",
        processes[1].err,
    ), processes[1].err
    assert "process 1 failed: RuntimeError: no fuel" in processes[0].err


# Devices that are at a step for seconds, from the fourth on, and use no processor of their host.
BUSY = """
import attrs, jax, time
from trainer_core import hookimpl, plugin, setting

@plugin
class Busy:
    seconds: float = setting(1.0)

    def work(self, step):
        if int(step) > 3:
            time.sleep(self.seconds)

    @hookimpl(wrapper=True)
    def step(self, run):
        step = yield

        def apply(state, batch):
            state, metrics = step.apply(state, batch)
            jax.debug.callback(self.work, state.step)
            return state, metrics

        return attrs.evolve(step, apply=apply)
"""


@pytest.mark.long
def test_processes_whose_devices_never_finish_end_and_say_so(tmp_path: Path) -> None:
    (tmp_path / "busy.py").write_text(BUSY)
    plugin = "plugins.busy={use='busy:Busy', seconds=1000.0}"
    processes = together(2, *ENDLESS, plugin, folder=tmp_path)
    assert [each.code for each in processes] == [1, 1]
    for index, each in enumerate(processes):
        assert re.match(
            rf"error: all processes stand still, for {PATIENCE} seconds \(.*\): training, after "
            r"step \d; their devices wait for each other .*\n"
            rf"error: where this process was: run/stacks-{index}.txt\n$",
            each.err,
        ), each.err
    # Of the devices of process 1, this one waits for, no thread is Python's.
    assert "busy.py" in (tmp_path / "run" / "stacks-0.txt").read_text()


class Result:
    """Stands in for an array that a device computes."""

    def __init__(self) -> None:
        self.is_there = self.is_given_away = False

    def is_deleted(self) -> bool:
        return self.is_given_away

    def is_ready(self) -> bool:
        if self.is_given_away:
            raise RuntimeError("Array has been deleted.")
        return self.is_there


def test_devices_that_finish_something_do_not_stand_still(tmp_path: Path) -> None:
    board: Any = Lame()
    watching = watch.Watch(board, 1, TIMEOUT, tmp_path)
    watching.end()  # its threads: here the looks are counted by hand
    watching.pass_by(phase="training")
    steps = [Result(), Result(), Result()]

    def look(times: int) -> list[Failure]:
        for _ in range(times):
            watching._give(0.0)
        return watching._judged({0: watching._sign})

    for step in steps:
        with watching.giving() as note:
            note(step)
    for step in steps:
        assert look(PATIENCE - 1) == []
        step.is_there = True
        assert look(1) == []
    # With nothing to do, it waits for its host: for data, it may be.
    assert look(2 * PATIENCE) == []
    given_away = Result()
    with watching.giving() as note:
        note(given_away)
    given_away.is_given_away = True  # to the next step
    assert look(2 * PATIENCE) == []
    with watching.giving():
        (found,) = look(PATIENCE)  # nor is a device there to take more
    assert found.text.startswith("all processes stand still")
