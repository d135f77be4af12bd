"""Runs of several processes: equal to one process, and ended together."""

from __future__ import annotations

import json
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command import DECODER, PERCEPTRON
from processes import Ended, ended, started, together

from trainer_core import cli

# In one process only, or in another way than `raise`, something happens.
EVENT = """
import json, os, signal
import numpy as np
from trainer_core import hookimpl, plugin, setting

@plugin
class Event:
    process: int = setting(1)
    at: int = setting(3)
    what: str = setting("raise")

    @hookimpl
    def report(self, run, step):
        if self.process in (run.process, -1) and step == self.at:
            if self.what == "raise":
                raise RuntimeError("no fuel")
            if self.what == "stop":
                run.stop("enough")
            if self.what == "mesh":
                places = np.vectorize(lambda device: device.process_index)(run.mesh.devices)
                open("mesh", "w").write(json.dumps(places[:, :, 0].tolist()))
            if self.what.startswith("SIG"):
                os.kill(os.getpid(), getattr(signal, self.what))

    @hookimpl
    def close(self, run):
        open(f"closed-{run.process}", "w").close()
"""
# The second checkpoint cannot be written by one process.
FULL = """
import errno
import trainer_checkpoint.contents
from trainer_core import hookimpl, plugin, setting

@plugin
class Full:
    process: int = setting()

    @hookimpl
    def save(self, run, step):
        if run.process == self.process and step > 3:
            trainer_checkpoint.contents.seal = self.seal

    def seal(self, value):
        raise OSError(errno.ENOSPC, "No space left on device")
"""
# All decide together, with values of their own, and one comes late.
ASKING = """
import json, time
from trainer_core import hookimpl, plugin

@plugin
class Asking:
    @hookimpl
    def report(self, run, step):
        if step != 1:
            return
        if run.process == 1:
            time.sleep(0.5)
        found = [run.agree({"from": run.process, "round": count}) for count in range(3)]
        some = run.gather(10 * run.process or None)
        found += [run.agree(None), sorted(some.items()), run.agree(str(run.process))]
        open(f"asked-{run.process}", "w").write(json.dumps(found))
"""
# Held-out data that one process cannot read.
BROKEN = """
from models import Examples
from trainer_core import hookimpl, plugin

@plugin
class Broken(Examples):
    @hookimpl
    def build_data(self, run):
        data = super().build_data(run)
        if run.process == 1:
            data.held_out = lambda index: 1 / 0
        return data
"""
# A signal comes as soon as JAX has connected, while the run is still being opened.
AT_ONCE = """
import os, signal
import jax
from trainer_core import hookimpl, plugin

initialize = jax.distributed.initialize

def connect(**arguments):
    initialize(**arguments)
    if arguments["process_id"] == 1:
        os.kill(os.getpid(), signal.SIGTERM)

jax.distributed.initialize = connect

@plugin
class AtOnce:
    @hookimpl
    def report(self):
        pass
"""
# One process takes longer to lay out its devices.
LATE = """
import os, time
import trainer_core.assemble
from trainer_core import hookimpl, plugin

make_mesh = trainer_core.assemble.make_mesh

def make_late(*arguments):
    time.sleep(float(os.environ.get("LATE", 0)))
    return make_mesh(*arguments)

trainer_core.assemble.make_mesh = make_late

@plugin
class Late:
    @hookimpl
    def report(self):
        pass
"""
# Two runs of the same processes: the first fails in all of them, the second in one.
TWICE = """
import os, sys
from trainer_core import fit

for number, process in enumerate((-1, 1)):
    event = f"plugins.event={{use='event:Event', process={process}, at=2}}"
    try:
        fit(None, [*sys.argv[1:], event, f"run.directory=run-{number}"])
    except Exception as error:
        print(number, error, flush=True)
os._exit(1)
"""
# Process 0 ends as soon as it hears of a failure, with what connects them; the other is busy.
OWN = """
import os, sys, time
from trainer_core import fit

try:
    fit(None, sys.argv[1:])
except Exception as error:
    if "distributed.process=0" not in sys.argv:
        time.sleep(0.2)
    print("heard:", error, flush=True)
os._exit(1)
"""
# 93 windows of 32 bytes, 19 of them held out: no multiple of any batch here.
TEXT = "".join(f"{number * number % 7919:04} " for number in range(600))
TRAIN = ["train", "run.steps=6", "run.eval_every=3", "run.directory=run", "checkpoint.every=3"]
SMALL = [
    *TRAIN,
    *DECODER,
    "model.kv_heads=2",
    "data.path=text.txt",
    "data.held_out=0.2",
    "run.eval_batches=9",
]
EXAMPLES = [*TRAIN, *PERCEPTRON, "model.dropout=0.1"]
ENDLESS = [*EXAMPLES, "run.steps=100000", "run.eval_every=0"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return filled(tmp_path)


def filled(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "text.txt").write_text(TEXT)
    (folder / "event.py").write_text(EVENT)
    return folder


def alone(*arguments: str, folder: Path, devices: int) -> None:
    assert_done(together(1, *arguments, folder=filled(folder), devices=devices))


def assert_done(processes: list[Ended]) -> None:
    assert [each.code for each in processes] == [0] * len(processes), processes
    assert [each.err for each in processes] == [""] * len(processes)


def numbers(folder: Path) -> list[dict[str, Any]]:
    """The metrics of a run, without those of the clock."""
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    clock = ("seconds", "tokens_per_second")
    return [
        {name: value for name, value in json.loads(line).items() if name not in clock}
        for line in lines
    ]


def assert_same_run(found: Path, expected: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every number and the last state, to the bit."""
    assert numbers(found) == numbers(expected)
    assert cli.run(["checkpoint", "diff", str(found / "run"), str(expected / "run")]) == 0
    assert "none differs by more than 0\n" in capsys.readouterr().out


# ------------------------------------------------------------------ equal to one process


def test_two_processes_train_as_one_with_two_devices_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    two = filled(tmp_path / "two")
    processes = together(2, *EXAMPLES, folder=two)
    assert_done(processes)
    # Gloo, which stands in for a network of accelerators, says on stdout that it is there.
    assert re.sub(r"\[Gloo\].*\n", "", processes[1].out) == ""
    alone(*EXAMPLES, folder=tmp_path / "one", devices=2)
    assert_same_run(two, tmp_path / "one", capsys)
    assert "eval_loss" in numbers(two)[-1]


LAYOUTS = {
    "2 x 2": (2, 2, ["shard.mesh={data=2, fsdp=1, tensor=2}", "accumulate.microbatches=2"]),
    # Both processes hold all rows of a batch, or each holds every other one.
    "tensor across": (2, 1, ["shard.mesh={data=1, tensor=2}", "model.use=linen"]),
    "rows across": (2, 2, ["shard.mesh={tensor=2, data=2}", "optimizer.use=muon"]),
}


@pytest.mark.long
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_trains_as_one_process_does(
    layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    count, devices, settings = LAYOUTS[layout]
    several = filled(tmp_path / "several")
    assert_done(together(count, *SMALL, *settings, folder=several, devices=devices))
    alone(*SMALL, *settings, folder=tmp_path / "one", devices=count * devices)
    assert_same_run(several, tmp_path / "one", capsys)


@pytest.mark.long
def test_four_processes_give_the_losses_of_one(tmp_path: Path) -> None:
    settings = ["shard.mesh={data=2, fsdp=2}", "optimizer.use=sgd"]
    four, one = filled(tmp_path / "four"), tmp_path / "one"
    assert_done(together(4, *SMALL, *settings, folder=four))
    alone(*SMALL, *settings, folder=one, devices=4)
    assert_same_losses(four, one)


@pytest.mark.long
def test_an_axis_is_laid_across_processes_and_gives_the_losses_of_one(tmp_path: Path) -> None:
    settings = ["shard.mesh={data=2, fsdp=2}", "optimizer.use=sgd"]
    across = ["shard.dcn={fsdp=2}", "plugins.event={use='event:Event', what='mesh', at=1}"]
    two, one = filled(tmp_path / "two"), tmp_path / "one"
    assert_done(together(2, *SMALL, *settings, *across, folder=two, devices=2))
    # Without dcn, the first axis would lie across, as devices are numbered process by process.
    assert json.loads((two / "mesh").read_text()) == [[0, 1], [0, 1]]
    alone(*SMALL, *settings, folder=one, devices=4)
    assert_same_losses(two, one)


def assert_same_losses(several: Path, one: Path) -> None:
    # A network adds four numbers up in another order than one process: 3 roundings of a loss. A
    # gradient's reach the next loss times learning_rate * |gradient|^2 < 0.06, six steps long, and
    # even if the four cancel to a quarter of their size that is less than one more.
    for found, expected in zip(numbers(several), numbers(one), strict=True):
        assert found.keys() == expected.keys()
        for name in ("loss", "eval_loss"):
            if name in expected:
                assert found[name] == pytest.approx(expected[name], rel=4 * 2.0**-24), name


@pytest.mark.long
@pytest.mark.parametrize("count", [1, 2])
def test_a_checkpoint_of_two_processes_goes_on_in_any_number(
    count: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stop = ["plugins.event={use='event:Event', what='stop', at=2}"]
    rate = ["schedule.use=constant", "schedule.warmup=0"]  # whatever run.steps is
    settings = [*SMALL, *stop, *rate, "shard.mesh={data=1, fsdp=2}"]
    folder, whole = filled(tmp_path / "stopped"), filled(tmp_path / "whole")
    assert_done(together(2, *settings, "run.steps=1000", folder=folder))
    stopped = numbers(folder)[-1]["step"]
    assert 2 <= stopped < 100
    steps = f"run.steps={stopped + 3}"
    assert_done(together(count, *settings, steps, folder=folder, devices=2 // count))
    alone(*settings, "plugins.event.what=nothing", steps, folder=whole, devices=2)
    assert_same_run(folder, whole, capsys)


@pytest.mark.long
def test_a_checkpoint_of_two_processes_goes_on_in_four(tmp_path: Path) -> None:
    settings = [*SMALL, "optimizer.use=sgd", "schedule.use=constant", "schedule.warmup=0"]
    settings += ["shard.mesh={data=2, fsdp=2}"]
    folder, whole = filled(tmp_path / "moved"), tmp_path / "whole"
    assert_done(together(2, *settings, "run.steps=3", folder=folder, devices=2))
    assert_done(together(4, *settings, "run.steps=6", folder=folder))
    alone(*settings, "run.steps=6", folder=whole, devices=4)
    found, expected = numbers(folder), numbers(whole)
    assert [line["step"] for line in found] == [1, 2, 3, 4, 5, 6]
    for one, other in zip(found, expected, strict=True):
        # As above: four numbers added up in another order.
        assert one["loss"] == pytest.approx(other["loss"], rel=4 * 2.0**-24)


@pytest.mark.long
@pytest.mark.parametrize(("size", "batches"), [(4, 5), (3, 7)])
def test_held_out_loss_is_that_of_one_process(size: int, batches: int, tmp_path: Path) -> None:
    folder = filled(tmp_path)
    alone(*SMALL, folder=folder, devices=1)
    losses = {}
    for count in (1, 2, 4):
        evaluate = ["evaluate", "run", "--json", f"data.batch_size={size}"]
        processes = together(count, *evaluate, folder=folder)
        assert [each.code for each in processes] == [0] * count, processes
        answer = json.loads("".join(each.out for each in processes))  # one process prints it
        assert answer["batches"] == batches
        losses[count] = answer["eval_loss"]
    # A batch is a sum of 4 x 32 positive losses at most; in any order it is within 128 roundings.
    bound = 128 * 2.0**-24
    assert losses[2] == pytest.approx(losses[1], rel=bound)
    assert losses[4] == pytest.approx(losses[1], rel=bound)


@pytest.mark.long
def test_a_run_for_programs_prints_nothing_but_json(tmp_path: Path) -> None:
    processes = together(2, *EXAMPLES, "--json", folder=filled(tmp_path))
    assert [each.code for each in processes] == [0, 0], processes
    assert json.loads(processes[0].out.splitlines()[-1])["event"] == "done"
    assert all(json.loads(line) for line in processes[0].out.splitlines())
    assert processes[1].out == ""
    assert "[Gloo]" in processes[1].err  # what would stand there


def test_what_processes_decide_together_is_what_process_0_says_in_the_order_of_the_questions(
    tmp_path: Path,
) -> None:
    folder = filled(tmp_path)
    (folder / "asking.py").write_text(ASKING)
    settings = ["run.steps=1", "run.eval_every=0", "data.batch_size=12", "checkpoint.use=none"]
    assert_done(
        together(3, *EXAMPLES, *settings, "plugins.asking.use=asking:Asking", folder=folder)
    )
    agreed = [{"from": 0, "round": count} for count in range(3)]
    # Process 0 gave nothing to the fourth.
    wanted = [*agreed, None, [[1, 10], [2, 20]], "0"]
    assert [json.loads((folder / f"asked-{index}").read_text()) for index in range(3)] == [
        wanted
    ] * 3


@pytest.mark.long
def test_damage_that_one_process_alone_meets_is_passed_over_by_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [*SMALL, "shard.mesh={data=1, fsdp=2}", "checkpoint.every=2", "checkpoint.keep=9"]
    whole, folder = filled(tmp_path / "whole"), tmp_path / "damaged"
    assert_done(together(2, *settings, folder=whole))
    shutil.copytree(whole, folder)
    checkpoints = folder / "run" / "checkpoints"
    arrays = (checkpoints / "6" / "state" / "ocdbt.process_1" / "d").iterdir()
    max(arrays, key=lambda path: path.stat().st_size).unlink()
    (checkpoints / "4" / "data" / "process_1-of-2.json").write_text("{torn")
    processes = together(2, *settings, folder=folder)
    assert [each.code for each in processes] == [0, 0], processes
    for process, each in enumerate(processes):
        by = "" if process == 1 else r" \(process 1\)"
        assert re.search(rf"checkpoints/6 is not used: \S+ cannot be read: .*{by}\n", each.err)
        assert re.search(rf"checkpoints/4 is not used: data/process_1-of-2.* .*{by}\n", each.err)
    assert {"4.damaged", "6.damaged"} <= {path.name for path in checkpoints.iterdir()}
    assert_same_run(folder, whole, capsys)


# ------------------------------------------------------------------ ended together


def test_a_failure_of_one_process_ends_all_of_them(folder: Path) -> None:
    processes = together(2, *ENDLESS, "plugins.event.use=event:Event", folder=folder)
    assert [each.code for each in processes] == [1, 1], processes
    assert processes[0].err.startswith("error: process 1 failed: RuntimeError: no fuel\n")
    assert processes[1].err.startswith("error: RuntimeError: no fuel\n")
    assert (folder / "closed-0").exists()
    assert (folder / "closed-1").exists()


@pytest.mark.long
@pytest.mark.parametrize("process", [0, 1])
def test_a_write_that_fails_in_one_process_ends_all_of_them(process: int, folder: Path) -> None:
    (folder / "full.py").write_text(FULL)
    settings = ["checkpoint.every=1000", "run.log_every=100000"]
    full = f"plugins.full={{use='full:Full', process={process}}}"
    (folder / "run").mkdir()
    (folder / "run" / "checkpoint_now").touch()  # an early one, that is written
    processes = together(2, *ENDLESS, *settings, full, folder=folder)
    assert [each.code for each in processes] == [1, 1], processes
    said = "the checkpoint of step 1000 cannot be written to "
    own, other = processes[process].err, processes[1 - process].err
    assert own.startswith(f"error: {said}")
    assert "no space left on the disk; the older ones are intact: steps 1\n" in own
    assert other.startswith(f"error: process {process} failed: {said}")


@pytest.mark.long
def test_a_failure_of_one_process_that_evaluates_a_run_ends_all_of_them(folder: Path) -> None:
    (folder / "broken.py").write_text(BROKEN)
    alone(*EXAMPLES, folder=folder, devices=1)
    processes = together(2, "evaluate", "run", "data.use=broken:Broken", folder=folder)
    assert [each.code for each in processes] == [1, 1], processes
    assert "process 1 failed: ZeroDivisionError: division by zero" in processes[0].err
    assert processes[1].err.startswith("error: ZeroDivisionError: division by zero\n")


@pytest.mark.long
def test_a_second_run_of_the_same_processes_hears_of_its_own_failures(folder: Path) -> None:
    (folder / "twice.py").write_text(TWICE)
    program = [sys.executable, "twice.py"]
    with started(2, *ENDLESS[1:], folder=folder, program=program) as running:
        processes = ended(running, folder)
    assert [each.code for each in processes] == [1, 1], processes
    for process in processes:
        assert re.search(r"^0 no fuel$", process.out, re.MULTILINE)
    assert re.search(r"^1 no fuel$", processes[1].out, re.MULTILINE)
    assert "process 1 failed: RuntimeError: no fuel" in processes[0].err + processes[0].out


@pytest.mark.long
@pytest.mark.parametrize("failing", ["process=0", "process=-1", "what='mistake'"])
def test_a_program_of_ones_own_that_ends_at_once_lets_the_others_say_why(
    failing: str, folder: Path
) -> None:
    (folder / "own.py").write_text(OWN)
    event = f"plugins.event={{use='event:Event', {failing}}}"
    mistake = ["shard.mesh={data=3}"] if "mistake" in failing else []
    program = [sys.executable, "own.py"]
    with started(2, *ENDLESS[1:], event, *mistake, folder=folder, program=program) as running:
        processes = ended(running, folder)
    assert [each.code for each in processes] == [1, 1], processes
    why = r"heard: \[shard\] mesh = {data = 3" if mistake else "no fuel"
    assert [len(re.findall(why, each.out + each.err)) for each in processes] == [1, 1], processes
    # JAX would end them by a signal, with a text of its own.
    assert "Terminating process" not in processes[1].err


@pytest.mark.long
def test_a_stop_before_all_have_come_stops_those_that_have(folder: Path) -> None:
    each = {index: ["distributed.processes=3"] for index in range(2)}
    with started(2, *ENDLESS, folder=folder, each=each) as running:
        _wait_for(lambda: "waits at" in (folder / "err-0").read_text())
        running[1].send_signal(signal.SIGTERM)
        found = ended(running, folder)
    assert [each.code for each in found] == [0, 0], found
    assert "nothing was changed (SIGTERM of process 1)" in found[0].out
    assert "nothing was changed (SIGTERM)" in found[1].out
    assert not (folder / "run").exists()


@pytest.mark.long
def test_a_signal_that_comes_while_the_processes_connect_is_not_lost(folder: Path) -> None:
    (folder / "at_once.py").write_text(AT_ONCE)
    settings = [*ENDLESS, "run.steps=3000", "plugins.once.use=at_once:AtOnce"]
    assert_done(together(2, *settings, folder=folder))
    assert numbers(folder)[-1]["step"] < 100


@pytest.mark.long
@pytest.mark.parametrize("what", ["stop", "SIGTERM", "SIGINT"])
def test_a_stop_of_one_process_stops_all_at_the_same_step(what: str, folder: Path) -> None:
    event = f"plugins.event={{use='event:Event', what='{what}'}}"
    assert_done(together(2, *ENDLESS, event, folder=folder))
    last = numbers(folder)[-1]["step"]
    assert 3 <= last < 90000
    assert (folder / "run" / "checkpoints" / str(last)).is_dir()


@pytest.mark.long
def test_a_file_asks_all_of_them_to_save_and_train_on(folder: Path) -> None:
    with started(2, *ENDLESS, "checkpoint.every=100000", folder=folder) as running:
        run = folder / "run"
        _wait_for(lambda: (run / "metrics.jsonl").exists())
        (run / "checkpoint_now").touch()
        _wait_for(lambda: any((run / "checkpoints").glob("*[0-9]")))
        assert not (run / "checkpoint_now").exists()
        assert [each.poll() for each in running] == [None, None]


def _wait_for(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.long
@pytest.mark.parametrize("process", [0, 1])
def test_a_killed_process_ends_the_others(process: int, folder: Path) -> None:
    event = f"plugins.event={{use='event:Event', what='SIGKILL', process={process}}}"
    with started(2, *ENDLESS, event, folder=folder) as running:
        running[process].wait()
        killed = time.monotonic()
        other = ended(running, folder)[1 - process]
        assert time.monotonic() - killed < 45  # JAX itself notices within 30 seconds
    assert running[process].returncode == -signal.SIGKILL
    assert other.code != 0
    if process == 1:
        silent = r"error: process 1 \(.*\).* gave no sign of life for .* killed"
        assert re.match(silent, other.err), other
    else:  # JAX ends it at once, as process 0 holds what connects them, unless it is slow to
        silent = r"process 0 \(.*\).* gave no sign of life for .* killed"
        assert re.search(rf"another task died|{silent}", other.err), other


@pytest.mark.long
@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (["shard.mesh={data=3}"], "error: [shard] mesh = {data = 3, fsdp = 1, tensor = 1} needs 3"),
        (["data.batch_size=5"], "error: [data] batch_size = 5 must be divisible by the 2 devices"),
    ],
)
def test_a_mistake_of_all_is_said_once(settings: list[str], text: str, folder: Path) -> None:
    processes = together(2, *ENDLESS, *settings, folder=folder)
    assert [each.code for each in processes] == [2, 2], processes
    assert processes[0].err.startswith(text)
    assert processes[1].err.startswith(f"error: process 0 says why: {text[7:40]}")
    assert processes[1].err.count("\n") == 1


@pytest.mark.long
@pytest.mark.parametrize("late", [0, 1])
def test_a_mistake_of_all_is_said_once_though_one_finds_it_seconds_later(
    late: int, folder: Path
) -> None:
    (folder / "late.py").write_text(LATE)
    processes = together(
        2,
        *[*ENDLESS, "shard.mesh={data=3}", "plugins.late.use=late:Late"],
        folder=folder,
        variables={late: {"LATE": "4"}},
    )
    assert [each.code for each in processes] == [2, 2], processes
    assert processes[0].err.startswith("error: [shard] mesh = {data = 3,")
    assert processes[1].err.startswith("error: process 0 says why: [shard] mesh = {data = 3,")
    assert [each.err.count("\n") for each in processes] == [1, 1]


@pytest.mark.long
def test_processes_with_unequal_devices_are_an_error(folder: Path) -> None:
    flags = "--xla_force_host_platform_device_count"
    processes = together(2, *ENDLESS, folder=folder, variables={1: {"XLA_FLAGS": f"{flags}=2"}})
    assert [each.code for each in processes] == [2, 2], processes
    assert "\n  process 0 has 1\n  process 1 has 2" in processes[0].err
    assert processes[1].err.startswith("error: process 0 says why: every process needs the same")
    assert processes[1].err.count("\n") == 1
