"""A process that does not come while JAX connects them is named by the others, in time."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from command import PERCEPTRON
from processes import Ended, ended, started, together

from trainer_core import connecting
from trainer_core.roll_call import Place
from trainer_core.stacks import end_hard
from trainer_core.wire import Wire, read, written

TIMEOUT = 10
PATIENCE = 5  # of its seconds, until one that is not heard of is named
# To one process something happens before JAX connects it, or right after: its devices do not run
# yet, and JAX waits once more. Or JAX finds nobody where it connects it. The disk of the others is
# slow, as they write their stacks to it.
AT = """
import os, signal, time
import jax
import trainer_core.stacks
from trainer_core import hookimpl, plugin

initialize, write = jax.distributed.initialize, trainer_core.stacks.write_stacks

def write_slowly(directory, process):
    time.sleep(1)
    return write(directory, process)

def happen(now, process):
    at, what, to = os.environ["AT"].split()
    if (now, str(process)) == (at, to):
        if what == "raise":
            raise RuntimeError("no route")
        if what == "sleep":
            time.sleep(1000)
        if what == "lose":
            return True
        os.kill(os.getpid(), getattr(signal, what))

def connect(**arguments):
    if happen("before", arguments["process_id"]):
        arguments["coordinator_address"] = "localhost:1"
    initialize(**arguments)
    happen("after", arguments["process_id"])

jax.distributed.initialize = connect
trainer_core.stacks.write_stacks = write_slowly

@plugin
class At:
    @hookimpl
    def report(self):
        pass
"""
TRAIN = ["train", *PERCEPTRON, "run.directory=run", "run.steps=2", f"distributed.timeout={TIMEOUT}"]


def others(folder: Path, at: str, what: str, process: int) -> list[Ended]:
    """Return how the others of three processes ended."""
    (folder / "at.py").write_text(AT)
    variables = {index: {"AT": f"{at} {what} {process}"} for index in range(3)}
    with started(3, *TRAIN, "plugins.at.use=at:At", folder=folder, variables=variables) as running:
        left = [index for index in range(3) if index != process]
        for index in left:
            running[index].wait(timeout=60)
        running[process].kill()
        every = ended(running, folder)
        return [every[index] for index in left]


def assert_silent(found: Ended, process: int) -> None:
    assert_said(
        found,
        rf"process {process} \(.*\) gave no sign of life for {PATIENCE} seconds .* last seen "
        r"connecting, at localhost:\d+; end what is left of it, and start all processes again",
    )


def assert_said(found: Ended, text: str) -> None:
    assert found.code == 1, found
    assert re.match(
        rf"error: {text}\nerror: where this process was: run/stacks-\d.txt\n$", found.err
    ), found.err


@pytest.mark.long
@pytest.mark.parametrize("process", [0, 1])
@pytest.mark.parametrize("at", ["before", "after"])
def test_a_process_that_is_stopped_is_named_with_the_coordinator(
    at: str, process: int, tmp_path: Path
) -> None:
    for each in others(tmp_path, at, "SIGSTOP", process):
        assert_silent(each, process)
    assert len(list(tmp_path.glob("run/stacks-*.txt"))) == 2


@pytest.mark.long
# Once it has connected, JAX itself may be faster to notice that process 0 is gone, and aborts.
@pytest.mark.parametrize(("at", "process"), [("before", 0), ("before", 1), ("after", 1)])
def test_a_process_that_is_killed_is_named_at_once(at: str, process: int, tmp_path: Path) -> None:
    for each in others(tmp_path, at, "SIGKILL", process):
        assert_said(
            each, rf"process {process} \(.*\) ended while JAX connected .* localhost:\d+: .*"
        )


@pytest.mark.long
@pytest.mark.parametrize("process", [0, 1])
# After: process 0 has what connects them, and JAX would abort the others before they have said it.
@pytest.mark.parametrize("at", ["before", "after"])
def test_an_error_of_one_process_is_told_to_all(at: str, process: int, tmp_path: Path) -> None:
    for each in others(tmp_path, at, "raise", process):
        assert_said(each, rf"process {process} failed: RuntimeError: no route")


@pytest.mark.long
@pytest.mark.parametrize("process", [0, 1])
def test_one_that_lives_and_does_not_begin_to_connect_is_named_with_its_place(
    process: int, tmp_path: Path
) -> None:
    for each in others(tmp_path, "before", "sleep", process):
        assert_said(
            each,
            rf"process {process} \(.*\) did not begin to connect within {PATIENCE} seconds "
            rf"\(.*\), and the others wait for it: it stands at .*at.py:\d+, in happen",
        )
    assert "at.py" in (tmp_path / f"run/stacks-{process}.txt").read_text()


@pytest.mark.long
def test_where_jax_connects_not_all_each_says_so(tmp_path: Path) -> None:
    for each in others(tmp_path, "before", "lose", 1):
        assert_said(
            each,
            rf"the processes met at localhost:\d+ .* did not connect them within {PATIENCE} .*",
        )


def test_what_was_said_last_is_heard_though_it_came_with_the_line_before() -> None:
    mine, theirs = map(Wire, socket.socketpair())
    for line in ("met", "here", "failed"):
        theirs.say(line)
    theirs.close()
    assert mine.line(TIMEOUT) == "met"
    assert mine.lines() == ["here", "failed"]
    assert mine.lines() is None
    mine.close()


def test_a_line_that_never_ends_does_not_fill_the_memory() -> None:
    mine, theirs = map(Wire, socket.socketpair())
    ours, stranger = map(Wire, socket.socketpair())

    def stream() -> None:
        for each in (theirs, stranger):
            each.say("x" * (1 << 24))
            each.finish()

    streaming = threading.Thread(target=stream)
    streaming.start()
    assert mine.line(TIMEOUT) is None
    mine.close()
    lines: list[str] | None = []
    while lines == []:
        lines = ours.lines()
    assert lines is None
    ours.close()
    streaming.join()


class HardEnd(BaseException):
    """The process would have ended here."""


@pytest.fixture
def judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Wire, int], list[str]]:
    """Return a function that lets a process listen to one other, and gives why it would end."""
    monkeypatch.setattr(connecting, "LOOK", 0.5)

    def judge(wire: Wire, process: int) -> list[str]:
        place = Place(coordinator="node0:1", processes=2, process=process, timeout=TIMEOUT)
        other = connecting.Peer(1 - process, f"node{1 - process}", wire)
        found = connecting.Connecting(place, [other], tmp_path)
        said: list[str] = []

        def end_hard(errors: Sequence[str], *_: Any) -> None:
            said.extend(errors)
            found.end()
            wire.close()
            raise HardEnd

        monkeypatch.setattr(connecting, "end_hard", end_hard)

        def look() -> None:
            with contextlib.suppress(HardEnd):
                found.look()

        looking = threading.Thread(target=look)
        looking.start()
        looking.join(60)
        return said

    return judge


def test_a_failure_that_came_with_the_answer_of_the_roll_call_is_heard_at_once(
    judged: Callable[[Wire, int], list[str]],
) -> None:
    mine, theirs = map(Wire, socket.socketpair())
    failed = "failed " + written(connecting.Failed(["no route"]))
    for line in ("answer", "here", failed):
        theirs.say(line)  # it then waits, and says no more
    assert mine.line(TIMEOUT) == "answer"
    assert judged(mine, 1) == ["no route"]
    theirs.close()


@pytest.mark.parametrize("said", ["", "[1]", "no route", '{"texts": 3}', '{"texts": [3]}'])
def test_a_failure_that_cannot_be_read_is_missed_when_its_process_ends(
    said: str, judged: Callable[[Wire, int], list[str]]
) -> None:
    mine, theirs = map(Wire, socket.socketpair())
    theirs.say(f"failed {said}")
    theirs.close()
    [why] = judged(mine, 1)
    assert why.startswith("process 0 (node0) ended while JAX connected the processes")


def test_an_error_of_the_thread_that_looks_is_a_failure_to_connect(
    judged: Callable[[Wire, int], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def miss(self: connecting.Connecting, looks: int) -> list[str]:
        raise KeyError("node1")

    monkeypatch.setattr(connecting.Connecting, "_missed", miss)
    mine, theirs = map(Wire, socket.socketpair())
    [why] = judged(mine, 0)
    place = rf"{re.escape(__file__)}:\d+, in miss"
    assert re.fullmatch(rf"process 0 failed: KeyError: 'node1', at {place}", why)
    # The other hears of it, too.
    told = (theirs.line(TIMEOUT) or "", theirs.line(TIMEOUT) or "")[1]
    assert read(told.removeprefix("failed "), connecting.Failed) == connecting.Failed([why])
    theirs.close()


def test_a_process_ends_though_what_it_does_last_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes: list[int] = []
    monkeypatch.setattr("os._exit", codes.append)

    def last() -> None:
        raise KeyError("node1")

    with pytest.raises(KeyError):  # in a thread, it would be the end of that alone
        end_hard(["no route"], tmp_path, 0, last)
    assert codes == [1]


def test_a_process_that_fell_silent_just_before_it_would_be_late_is_not_taken_for_alive(
    judged: Callable[[Wire, int], list[str]],
) -> None:
    mine, theirs = map(Wire, socket.socketpair())

    def fall_silent() -> None:
        for _ in range(PATIENCE - 1):
            time.sleep(0.25)
            theirs.say("here")
            time.sleep(0.25)

    saying = threading.Thread(target=fall_silent)
    saying.start()
    [said] = judged(mine, 0)
    assert said.startswith("process 1 (node1) gave no sign of life for ")
    saying.join()
    theirs.close()


@contextmanager
def silent_server() -> Iterator[int]:
    with socket.create_server(("localhost", 0)) as server:
        port: int = server.getsockname()[1]
        yield port


@pytest.mark.long
def test_processes_find_each_other_where_a_web_proxy_is_set(tmp_path: Path) -> None:
    with silent_server() as port:
        proxy = dict.fromkeys(("http_proxy", "https_proxy"), f"http://localhost:{port}")
        processes = together(2, *TRAIN, folder=tmp_path, variables={0: proxy, 1: proxy})
    assert [(each.code, each.err) for each in processes] == [(0, ""), (0, "")]


@pytest.mark.long
def test_a_port_that_is_taken_ends_each_with_an_error_of_its_own(tmp_path: Path) -> None:
    with silent_server() as port:
        each = [f"distributed.coordinator=localhost:{port}"]
        first, second = together(2, *TRAIN, folder=tmp_path, each={0: each, 1: each})
    assert (first.code, second.code) == (2, 2)
    assert re.match(rf"error: process 0 cannot listen on port {port} .* give another", first.err)
    assert re.match(
        rf"error: process 1 could not reach process 0 at localhost:{port} within {TIMEOUT} seconds "
        r".*what is there does not answer: it is no trainer, hangs, or has ended",
        second.err,
    )
