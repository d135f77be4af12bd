"""What is said where the processes of a run do not find each other, or are not the same."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import attrs
import pytest
from processes import free_port

from trainer_core import roll_call as roll_call_module
from trainer_core.config import load_config
from trainer_core.distributed import connect
from trainer_core.errors import UserError
from trainer_core.roll_call import Place, roll_call
from trainer_core.run import StopRequest
from trainer_core.signals import Interrupted
from trainer_core.watch import GRACE, LOOK, patience
from trainer_core.wire import Wire

pytestmark = pytest.mark.aside

SAME = {"config": {"run.steps": 3, "optimizer.use": "adamw"}, "version": {"jax": "1.0"}}


def come(place: Place, same: Any = SAME) -> None:
    for peer in roll_call(place, same, StopRequest()):
        peer.wire.close()


def met(
    indices: list[int], processes: int, same: dict[int, Any] | None = None, timeout: int = 1
) -> dict[int, UserError | None]:
    """Call some processes, each in a thread, and return what each was told, by its place here."""
    port = free_port()
    told: dict[int, UserError | None] = {}

    def call(number: int, index: int) -> None:
        place = Place(
            coordinator=f"localhost:{port}", processes=processes, process=index, timeout=timeout
        )
        try:
            come(place, (same or {}).get(number, SAME))
            told[number] = None
        except UserError as error:
            told[number] = error

    threads = [threading.Thread(target=call, args=each) for each in enumerate(indices)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return told


def test_processes_that_are_the_same_go_on() -> None:
    assert met([2, 0, 1], 3, timeout=20) == {0: None, 1: None, 2: None}


@pytest.mark.parametrize(
    ("title", "values", "text"),
    [
        (
            "config",
            {"run.steps": 4},
            "config than process 0 (HOST): run.steps is 4 there, and 3 on",
        ),
        (
            "config",
            {"optimizer.use": "sgd", "optimizer.beta1": 0.5},
            'config than process 0 (HOST): optimizer.use is "sgd" there, and "adamw" on process 0',
        ),
        ("version", {"jax": "1.1"}, 'version than process 0 (HOST): jax is "1.1" there, and "1.0"'),
        ("version", {"flax": "1"}, 'process 0 (HOST): flax is "1" there, and not set on process 0'),
    ],
)
def test_the_first_difference_is_named(title: str, values: dict[str, Any], text: str) -> None:
    other = {**SAME, title: {**SAME[title], **values}}
    told = met([0, 1], 2, {1: other}, timeout=20)
    text = text.replace("HOST", socket.gethostname())
    assert told[0] is not None
    assert text in str(told[0])
    assert not told[0].is_told
    # Every process ends with it, and process 0 says it.
    assert str(told[1]) == str(told[0])
    assert told[1] is not None
    assert told[1].is_told


def test_missing_processes_are_named_within_the_timeout() -> None:
    began = time.monotonic()
    told = met([0, 2], 4, timeout=4)  # process 0 answers after three: one is left on a busy machine
    assert time.monotonic() - began < 8
    text = str(told[0])
    assert "2 of 4 processes did not come to localhost:" in text
    assert "within 4 seconds ([distributed] timeout): process 1, 3; localhost can only be" in text
    assert text.endswith(
        f"\n  process 0 on {socket.gethostname()}\n  process 2 on {socket.gethostname()}"
    )
    assert str(told[1]) == text


def test_a_coordinator_that_does_not_answer_is_named_within_the_timeout() -> None:
    began = time.monotonic()
    told = met([1], 2)
    assert time.monotonic() - began < 5
    assert "process 1 could not reach process 0 at localhost:" in str(told[0])
    assert "within 1 seconds ([distributed] timeout): connection refused; localhost is" in str(
        told[0]
    )


def test_process_0_answers_early_enough_for_a_machine_that_is_busy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    say = Wire.say

    def say_late(wire: Wire, line: str) -> None:
        if "problem" in line:
            time.sleep(2)
        say(wire, line)

    monkeypatch.setattr(Wire, "say", say_late)
    told = met([0, 2], 3, timeout=12)
    assert "1 of 3 processes did not come to localhost:" in str(told[1])


def test_a_process_that_reaches_itself_has_not_reached_process_0(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    port = free_port()

    def reach_itself(address: tuple[str, int], timeout: float) -> socket.socket:
        # As the system does by itself, once in thousands of attempts.
        found = socket.socket()
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(("127.0.0.1", port))
        found.connect(("127.0.0.1", port))
        return found

    monkeypatch.setattr(socket, "create_connection", reach_itself)
    place = Place(coordinator=f"localhost:{port}", processes=2, process=1, timeout=1)
    with pytest.raises(UserError, match=r"could not reach process 0 .*: connection refused"):
        roll_call(place, SAME, StopRequest())


def test_a_process_that_began_earlier_has_its_answer_within_its_own_timeout() -> None:
    port = free_port()
    told: dict[int, tuple[float, str]] = {}

    def call(index: int) -> None:
        place = Place(coordinator=f"localhost:{port}", processes=3, process=index, timeout=4)
        began = time.monotonic()
        with pytest.raises(UserError) as error:
            roll_call(place, SAME, StopRequest())
        told[index] = (time.monotonic() - began, str(error.value))

    threads = [threading.Thread(target=call, args=[index]) for index in (1, 0)]
    threads[0].start()
    time.sleep(2)
    threads[1].start()
    for thread in threads:
        thread.join()
    seconds, text = told[1]
    assert seconds < 5  # not the six after which process 0 itself has waited long enough
    assert "1 of 3 processes did not come" in text
    assert "process 2;" in text


def test_a_coordinator_that_hangs_is_named_within_the_timeout() -> None:
    with socket.create_server(("localhost", 0)) as server:  # it takes calls, and says nothing
        place = Place(
            coordinator=f"localhost:{server.getsockname()[1]}", processes=2, process=1, timeout=1
        )
        began = time.monotonic()
        with pytest.raises(UserError, match="does not answer: it is no trainer, hangs, or has"):
            roll_call(place, SAME, StopRequest())
        assert time.monotonic() - began < 3


def test_a_stranger_that_never_ends_its_line_keeps_nobody_for_longer_than_the_timeout() -> None:
    def stream(server: socket.socket) -> None:
        connection = server.accept()[0]
        with connection, contextlib.suppress(OSError):
            while True:
                connection.sendall(b"x")
                time.sleep(0.05)

    with socket.create_server(("localhost", 0)) as server:
        threading.Thread(target=stream, args=[server], daemon=True).start()
        port = server.getsockname()[1]
        place = Place(coordinator=f"localhost:{port}", processes=2, process=1, timeout=1)
        began = time.monotonic()
        with pytest.raises(UserError, match="does not answer: it is no trainer"):
            roll_call(place, SAME, StopRequest())
        assert time.monotonic() - began < 3


def test_a_stranger_that_never_ends_its_line_keeps_process_0_no_longer_either() -> None:
    port = free_port()
    place = Place(coordinator=f"localhost:{port}", processes=2, process=0, timeout=1)

    def stream() -> None:
        _wait_for_server(port)
        with (
            socket.create_connection(("localhost", port)) as connection,
            contextlib.suppress(OSError),
        ):
            while True:
                connection.sendall(b"x")
                time.sleep(0.05)

    threading.Thread(target=stream, daemon=True).start()
    began = time.monotonic()
    with pytest.raises(UserError, match="1 of 2 processes did not come"):
        roll_call(place, SAME, StopRequest())
    assert time.monotonic() - began < 3


def test_two_processes_with_one_index_are_named() -> None:
    told = met([0, 1, 1], 3, timeout=20)
    host = socket.gethostname()
    text = f"two processes have [distributed] process = 1, on {host} and {host}"
    assert [str(each).startswith(text) for each in told.values()] == [True] * 3


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_a_process_that_is_gone_may_come_again(order: tuple[int, int]) -> None:
    port = free_port()
    place = Place(coordinator=f"localhost:{port}", processes=3, process=0, timeout=20)
    told: list[Any] = []

    def call(index: int) -> None:
        told.append(come(attrs.evolve(place, process=index)))

    threads = [threading.Thread(target=call, args=(index,)) for index in (0, *order)]
    threads[0].start()
    gone = {"process": 1, "processes": 3, "host": "old", "same": SAME, "seconds": 20}
    _wait_for_server(port)
    with socket.create_connection(("localhost", port)) as first:
        first.sendall(json.dumps(gone).encode() + b"\n")
        time.sleep(0.2)
    for thread in threads[1:]:
        thread.start()
        time.sleep(0.2)
    for thread in threads:
        thread.join()
    assert told == [None] * 3


def _wait_for_server(port: int) -> None:
    while True:
        try:
            socket.create_connection(("localhost", port)).close()
            return
        except OSError:
            time.sleep(0.02)


def test_who_is_late_hears_what_was_wrong_with_another() -> None:
    port, told = free_port(), {}

    def call(index: int, after: float, same: Any) -> None:
        time.sleep(after)
        place = Place(coordinator=f"localhost:{port}", processes=3, process=index, timeout=20)
        with pytest.raises(UserError) as caught:
            roll_call(place, same, StopRequest())
        told[index] = str(caught.value)

    other = {"config": {"run.steps": 4}}
    calls = [(0, 0.0, SAME), (1, 0.0, other), (2, 1.0, SAME)]
    threads = [threading.Thread(target=call, args=each) for each in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(told) == 3
    assert len(set(told.values())) == 1
    assert "process 1" in told[2]


@pytest.mark.parametrize("asked", [0, 1, 2])
def test_a_stop_of_one_that_waits_stops_all_that_came_and_who_is_on_the_way(
    asked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of four, of which the last never comes."""
    monkeypatch.setattr(roll_call_module, "_LEAVE", 3.0)
    port = free_port()
    requests = [StopRequest() for _ in range(3)]
    ended: set[int] = set()

    def call(index: int, after: float) -> None:
        time.sleep(after)
        place = Place(coordinator=f"localhost:{port}", processes=4, process=index, timeout=60)
        with pytest.raises(Interrupted):
            roll_call(place, SAME, requests[index])
        ended.add(index)

    began = time.monotonic()
    calls = [(0, 0.0), (1, 0.0), (2, 1.5)]
    threads = [threading.Thread(target=call, args=each) for each in calls]
    for thread in threads:
        thread.start()
    time.sleep(1.0)
    requests[asked].set("SIGTERM")
    for thread in threads:
        thread.join()
    assert ended == {0, 1, 2}
    assert time.monotonic() - began < 20
    whose = dict.fromkeys(range(3), f" of process {asked}" if asked else "") | {asked: ""}
    assert [each.reason for each in requests] == [f"SIGTERM{whose[index]}" for index in range(3)]


def test_one_that_is_asked_to_stop_waits_for_no_process_0_that_never_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(roll_call_module, "_LEAVE", 1.0)
    stopping = StopRequest()
    stopping.set("SIGTERM")
    began = time.monotonic()
    with pytest.raises(Interrupted):
        roll_call(
            Place(coordinator=f"localhost:{free_port()}", processes=2, process=1, timeout=60),
            SAME,
            stopping,
        )
    assert time.monotonic() - began < 20


CARD = {"process": 1, "processes": 2, "host": "node1", "same": SAME, "seconds": 20}
NO_CARDS: list[Any] = [
    [1],
    {"problem": 1},
    {"problem": "", "host": "node1"},
    {"process": 1},
    {**CARD, "process": "1"},
    {**CARD, "process": -1},
    {**CARD, "process": 2},
    {**CARD, "host": None},
    {**CARD, "same": [1]},
    {**CARD, "same": {"config": 3}},
    {**CARD, "seconds": "20"},
]


@pytest.mark.parametrize("said", [*map(json.dumps, NO_CARDS), "[" * 100000])
def test_json_that_is_no_card_is_ignored(said: str) -> None:
    port = free_port()
    place = Place(coordinator=f"localhost:{port}", processes=2, process=0, timeout=20)
    peers: list[Any] = []
    calling = threading.Thread(target=lambda: peers.extend(roll_call(place, SAME, StopRequest())))
    calling.start()
    _wait_for_server(port)
    with socket.create_connection(("localhost", port)) as stranger:
        stranger.sendall(said.encode() + b"\n")
        come(attrs.evolve(place, process=1))
        calling.join()
    assert [(each.process, each.host) for each in peers] == [(1, socket.gethostname())]
    peers[0].wire.close()


NO_ANSWERS: list[Any] = [
    {},
    [],
    {"problem": None},
    {"problem": None, "host": "node0"},
    {"problem": 1, "host": "node0"},
    {"problem": "", "host": None},
    CARD,
]


@pytest.mark.parametrize("said", [*map(json.dumps, NO_ANSWERS), "[" * 100000])
def test_json_that_is_no_answer_is_that_of_no_trainer(said: str) -> None:
    def answer(server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                with server.accept()[0] as connection:
                    connection.recv(1 << 16)
                    connection.sendall(said.encode() + b"\n")

    with socket.create_server(("localhost", 0)) as server:
        threading.Thread(target=answer, args=[server], daemon=True).start()
        port = server.getsockname()[1]
        place = Place(coordinator=f"localhost:{port}", processes=2, process=1, timeout=1)
        with pytest.raises(UserError, match="does not answer: it is no trainer"):
            roll_call(place, SAME, StopRequest())


def test_a_stranger_on_the_port_is_no_process() -> None:
    port = free_port()
    answers: list[None] = []
    places = [
        Place(coordinator=f"localhost:{port}", processes=2, process=index, timeout=20)
        for index in range(2)
    ]
    threads = [
        threading.Thread(target=lambda each=each: answers.append(come(each))) for each in places
    ]
    threads[0].start()
    for said in (b"GET / HTTP/1.0\r\n\r\n", b"[1]\n", b""):
        while True:
            try:
                with socket.create_connection(("localhost", port)) as stranger:
                    stranger.sendall(said)
                break
            except ConnectionRefusedError:
                time.sleep(0.01)
    threads[1].start()
    for thread in threads:
        thread.join()
    assert len(answers) == 2


def test_a_port_in_use_is_named() -> None:
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        place = Place(coordinator=f"localhost:{port}", processes=2, process=0, timeout=1)
        with pytest.raises(UserError, match=rf"cannot listen on port {port} .* give another port"):
            roll_call(place, SAME, StopRequest())


# ------------------------------------------------------------------ the settings


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("coordinator=node1", r'coordinator = "node1" \(command line\): must be HOST:PORT'),
        ("coordinator=node1:0", "must be HOST:PORT"),
        ("coordinator=:1234", "must be HOST:PORT"),
        ("process=2", r"process = 2 \(command line\): of 2 processes, the last is 1"),
        ("process=-1", "process = -1"),
        ("processes=0", "processes = 0"),
        ("timeout=9", r"timeout = 9 \(command line\): must be >= 10"),
    ],
)
def test_a_setting_that_cannot_be_is_an_error(override: str, text: str) -> None:
    with pytest.raises(UserError, match=text):
        load_config(None, ["distributed.processes=2", f"distributed.{override}"])


def test_from_the_least_timeout_on_all_have_ended_by_then() -> None:
    """Of those who wait for one that hangs: first for its signs, then for themselves."""
    for timeout in range(load_config(None, ["distributed.timeout=10"]).distributed.timeout, 500):
        assert patience(timeout) * LOOK + GRACE <= timeout


@pytest.fixture
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_ID", "OMPI_MCA_orte_hnp_uri", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("no_cluster")
@pytest.mark.parametrize(
    ("given", "missing"),
    [
        (["process=1"], "coordinator and processes"),
        (["coordinator=node1:1234", "process=1"], "processes"),
        (["coordinator=node1:1234"], "processes and process"),
    ],
)
def test_a_table_that_no_cluster_completes_names_what_is_missing(
    given: list[str], missing: str
) -> None:
    config = load_config(None, [f"distributed.{each}" for each in given])
    with pytest.raises(UserError, match=rf"^\[distributed\] needs {missing} as well: there is no"):
        connect(config)


@pytest.mark.usefixtures("no_cluster")
@pytest.mark.parametrize("given", [[], ["processes=1", "process=0", "coordinator=node1:1234"]])
def test_a_process_that_is_alone_connects_to_nothing(given: list[str]) -> None:
    assert connect(load_config(None, [f"distributed.{each}" for each in given])) is None


@pytest.fixture
def slurm(no_cluster: None, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    variables = {
        "SLURM_JOB_ID": "7",
        "SLURM_STEP_NODELIST": "node[1-2]",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": "1",
        "SLURM_LOCALID": "0",
        "SLURM_STEP_NUM_NODES": "2",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def test_the_cluster_tells_what_is_not_given(slurm: pytest.MonkeyPatch) -> None:
    port = free_port()
    config = load_config(None, [f"distributed.coordinator=127.1.2.3:{port}"])
    vars(config.distributed)["timeout"] = 1  # less than a config may say, as nobody is there
    slurm.setenv("SLURM_STEP_NUM_NODES", "1")
    # It knows by itself that it is process 1 of 2, and finds nobody there.
    with pytest.raises(UserError, match=rf"^process 1 could not reach .* 127.1.2.3:{port}"):
        connect(config)


@pytest.mark.usefixtures("slurm")
def test_a_loopback_address_for_several_machines_is_an_error() -> None:
    config = load_config(None, ["distributed.coordinator=localhost:1234"])
    with pytest.raises(UserError, match=r"is an address of each machine itself.*give the name of"):
        connect(config)


def test_an_allocation_of_two_machines_says_nothing_of_processes_on_one(
    no_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_NNODES", "2")
    port = free_port()
    given = [f"coordinator=localhost:{port}", "processes=2", "process=1"]
    config = load_config(None, [f"distributed.{each}" for each in given])
    vars(config.distributed)["timeout"] = 1  # less than a config may say, as nobody is there
    with pytest.raises(UserError, match=r"^process 1 could not reach process 0 at localhost"):
        connect(config)


def test_a_pod_that_is_part_of_no_job_is_alone(
    no_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.delenv("JOB_COMPLETION_INDEX", raising=False)
    assert connect(load_config(None)) is None


def test_process_0_says_whom_it_waits_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(roll_call_module, "_SAY", 0.3)
    told = met([0, 2], 3, timeout=2)
    assert told[0] is not None
    said = [each.getMessage() for each in caplog.records]
    assert len(said) >= 2  # it waits for 1.5 s, so that the other has its answer in time
    for each in said:  # it alone: process 2 knows that it has come
        assert re.fullmatch(
            r"process 0 waits at localhost:\d+ for process 1, for \d seconds more "
            r"\(\[distributed\] timeout\)",
            each,
        )


def refusing(server: socket.socket) -> None:
    server.close()


def silent(server: socket.socket) -> None:
    return


def foreign(server: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            with server.accept()[0] as connection:
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        (refusing, "connection refused"),
        (silent, "what is there does not answer: it is no trainer, hangs, or has ended"),
        (foreign, "what is there does not answer: it is no trainer, hangs, or has ended"),
    ],
)
def test_the_others_say_long_before_the_timeout_that_they_do_not_reach_process_0(
    what: Callable[[socket.socket], None],
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(roll_call_module, "_SAY", 0.3)
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
        threading.Thread(target=what, args=[server], daemon=True).start()
        place = Place(coordinator=f"localhost:{port}", processes=2, process=1, timeout=2)
        with pytest.raises(UserError, match=reason):
            roll_call(place, SAME, StopRequest())
    said = [each.getMessage() for each in caplog.records]
    assert len(said) >= 2
    assert re.fullmatch(
        rf"process 1 waits at localhost:{port} for process 0, for \d seconds more "
        rf"\(\[distributed\] timeout\): {reason}",
        said[0],
    )
