"""Disks that are full, processes that are killed: the older checkpoints stay."""

from __future__ import annotations

import logging
import os
import random
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import jax.numpy as jnp
import numpy as np
import pytest
from checkpointed import bits, files, folder, like, python, restore, run_in, save, saving, state_at
from trainer_checkpoint.plugin import Orbax
from trainer_checkpoint.quiet import quiet
from trainer_checkpoint.steps import steps
from trainer_checkpoint.writer import Writer

from trainer_core.errors import RunError
from trainer_core.run import Run
from trainer_core.types import Data, TrainState


def large(state: TrainState, step: int) -> TrainState:
    """4 MB more, which do not compress."""
    noise = np.random.default_rng(step).integers(0, 2**32, 2**20, np.uint32)
    return attrs.evolve(state, step=jnp.int32(step), extra={"large": jnp.asarray(noise)})


@contextmanager
def small_disk(disk: Path, size: str) -> Iterator[Path]:
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip("needs the right to mount a disk")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Run]:
    """A run on a disk of its own: one large state fits, two do not."""
    with small_disk(tmp_path / "disk", "6m") as disk:
        yield run_in(disk / "run")


@pytest.fixture
def small_files() -> Iterator[Any]:
    """A function after which no file may grow beyond 1 MB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_fails_the_run_and_leaves_the_older_checkpoint(
    full_disk: Run, capfd: Any
) -> None:
    run = full_disk
    older, newer = (large(state_at(1, run.mesh), step) for step in (1, 2))
    plugin = Orbax()
    plugin.save(run, 1, older, Data())
    plugin.save(run, 2, newer, Data())
    with pytest.raises(RunError, match="no space left") as error:
        plugin.close(run, None)
    assert error.value.exit_code == 1
    assert str(folder(run, 2)) in str(error.value)
    assert "older ones are intact: steps 1" in str(error.value)
    assert [path.name for path in (run.directory / "checkpoints").iterdir()] == ["1"]
    restored = restore(run, like(older, run.mesh))
    assert restored is not None
    assert bits(restored) == bits(older)
    assert capfd.readouterr().err == ""


def test_a_full_disk_is_one_line_and_whatever_orbax_leaves_undone_says_nothing(
    tmp_path: Path,
) -> None:
    with small_disk(tmp_path / "disk", "520k") as disk:
        command = [sys.executable, "-m", "trainer_core", "train", "--quiet", "run.directory=run"]
        sizes = ["model.layers=1", "model.width=32", "model.heads=2", "data.batch_size=4"]
        lengths = ["data.length=32", "run.steps=30", "checkpoint.every=4", "run.eval_batches=1"]
        done = subprocess.run(
            [*command, *sizes, *lengths], cwd=disk, capture_output=True, text=True, check=False
        )
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(
        r"error: the checkpoint of step 8 .*no space left .* steps 4\n", done.stderr
    )


def test_of_what_nobody_asked_for_only_that_of_orbax_is_silent(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def raised_in(file: str) -> Exception:
        try:
            exec(compile("raise ValueError('no space')", file, "exec"))
        except ValueError as error:
            return error
        raise AssertionError

    said = [
        ("Task exception was never retrieved: coro=<write() at /env/orbax/checkpoint/a.py>", None),
        ("_GatheringFuture exception was never retrieved", raised_in("/env/orbax/checkpoint/a.py")),
        ('Future exception was never retrieved: Error writing "a" in OCDBT database', None),
        ("Future exception was never retrieved", raised_in("/env/mine/model.py")),
    ]
    with quiet():
        for message, error in said:
            logging.getLogger("asyncio").error(message, exc_info=error)
    assert [record.getMessage() for record in caplog.records] == [said[-1][0]]


def test_a_failed_write_surfaces_at_the_next_save(run: Run, small_files: Any) -> None:
    older = state_at(1, run.mesh)
    save(run, older)
    plugin = Orbax()
    small_files()
    plugin.save(run, 2, large(older, 2), Data())
    with pytest.raises(RunError, match=r"step 2 cannot be written.*steps 1"):
        plugin.save(run, 3, older, Data())
    plugin.close(run, None)
    assert steps(run.directory / "checkpoints") == [1]


def test_a_failed_write_surfaces_at_the_next_report(run: Run, small_files: Any) -> None:
    plugin = Orbax()
    small_files()
    plugin.save(run, 2, large(state_at(1, run.mesh), 2), Data())
    with pytest.raises(RunError, match="step 2 cannot be written"):  # noqa: PT012
        for _ in range(1000):
            plugin.report()
            time.sleep(0.01)
    plugin.close(run, None)


def test_a_failed_write_surfaces_at_close(run: Run, small_files: Any) -> None:
    plugin = Orbax()
    small_files()
    plugin.save(run, 2, large(state_at(1, run.mesh), 2), Data())
    with pytest.raises(RunError, match=r"step 2 cannot be written.*no older one"):
        plugin.close(run, None)


def test_closing_after_an_error_does_not_hide_it(run: Run, small_files: Any) -> None:
    plugin = Orbax()
    small_files()
    plugin.save(run, 2, large(state_at(1, run.mesh), 2), Data())
    original = ValueError("of the run")
    plugin.close(run, original)
    assert "step 2 cannot be written" in original.__notes__[0]


def test_close_waits_for_the_save_under_way(run: Run) -> None:
    state = large(state_at(1, run.mesh), 1)
    plugin = Orbax()
    plugin.save(run, 1, state, Data())
    plugin.close(run, ValueError("of the run"))
    restored = restore(run, like(state, run.mesh))
    assert restored is not None
    assert bits(restored) == bits(state)


def test_a_save_that_is_slower_than_its_interval_is_waited_for_and_only_by_the_next(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, slow = state_at(1, run.mesh), 0.5
    finish = Writer._finish

    def slowly(writer: Writer) -> None:
        time.sleep(slow)
        finish(writer)

    monkeypatch.setattr(Writer, "_finish", slowly)
    with saving(run, keep=9) as plugin:
        plugin.save(run, 1, state, Data())  # the first compiles
        began = time.monotonic()
        plugin.report()  # what comes between two saves waits for none
        assert time.monotonic() - began < slow / 2
        for step in (2, 3):
            plugin.save(run, step, state_at(step, run.mesh), Data())
            writers = [each for each in threading.enumerate() if each.name == "checkpoint"]
            assert len(writers) == 1
        assert time.monotonic() - began >= 2 * slow
    assert steps(run.directory / "checkpoints") == [1, 2, 3]
    restored = restore(run, like(state, run.mesh))
    assert restored is not None
    assert bits(restored) == bits(state_at(3, run.mesh))


def test_a_place_that_cannot_be_written_to_fails_the_run(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").write_text("a file")
    run = run_in(tmp_path / "run")
    with pytest.raises(RunError, match="checkpoints cannot be written to"):
        save(run, state_at(1, run.mesh))


def test_where_no_folder_can_be_made_nothing_is_left_waiting_for_it(run: Run) -> None:
    """Threads of Orbax did, for minutes, and the end of the process for them."""
    directory = run.directory / "checkpoints"
    save(run, state_at(1, run.mesh))
    before = threading.enumerate()
    plugin = Orbax()
    plugin.save(run, 2, state_at(2, run.mesh), Data())
    plugin._writer.wait()
    directory.rename(run.directory / "moved")
    directory.write_text("a file")
    with pytest.raises(RunError, match="step 3 cannot be written"):
        plugin.save(run, 3, state_at(3, run.mesh), Data())
    plugin.close(run, None)
    left = [type(each).__name__ for each in threading.enumerate() if each not in before]
    assert "_SignalingThread" not in left


TRAIN = """
import sys
from pathlib import Path
import attrs, jax, jax.numpy as jnp
from checkpointed import like, run_in, state_at
from trainer_checkpoint.plugin import Orbax
from trainer_core.types import Data

run = run_in(Path(sys.argv[1]))
def state(step):
    return attrs.evolve(state_at(step, run.mesh), extra={"large": jnp.full((1024, 1024), step)})

plugin = Orbax(keep=2)
found = plugin.restore(run, like(state(0), run.mesh), Data())
step = 0 if found is None else int(found.step)
assert found is None or (found.extra["large"] == step).all()
print("from", step, flush=True)
while True:
    step += 1
    plugin.save(run, step, state(step), Data())
    print("saving", step, flush=True)
"""


def test_killed_while_saving_it_resumes_from_a_whole_checkpoint(run: Run) -> None:
    chance = random.Random(7)
    saved = 0
    for _ in range(2):
        child = python(TRAIN, run.directory)
        assert child.stdout is not None
        first = child.stdout.readline().split()
        assert first[:1] == ["from"], child.communicate()[1]
        # A save is begun when the one before is on disk; the one that was begun last may be lost.
        assert int(first[1]) >= saved
        for line in child.stdout:
            saved = int(line.split()[1]) - 1
            if saved >= int(first[1]) + 3:
                break
        time.sleep(chance.uniform(0, 0.3))
        os.kill(child.pid, signal.SIGKILL)
        rest, _ = child.communicate()
        saved = max([saved, *(int(line.split()[1]) - 1 for line in rest.splitlines() if line)])
    wanted = attrs.evolve(
        state_at(0, run.mesh), extra={"large": jnp.zeros((1024, 1024), jnp.int32)}
    )
    restored = restore(run, like(wanted, run.mesh))
    assert restored is not None
    assert int(restored.step) >= saved
    assert np.unique(restored.extra["large"]) == [int(restored.step)]


NORMAL_RUN = """
import sys
from pathlib import Path
import trainer_checkpoint.plugin
assert not {"jax", "orbax", "optax", "tensorstore"} & sys.modules.keys(), sys.modules.keys()
from checkpointed import like, restore, run_in, save, state_at
run = run_in(Path(sys.argv[1]))
save(run, *(state_at(step, run.mesh) for step in (1, 2, 3)))
restore(run, like(state_at(3, run.mesh), run.mesh))
save(run, state_at(4, run.mesh))
"""


def test_a_normal_run_prints_nothing_and_the_plugin_is_imported_without_jax(run: Run) -> None:
    child = python(NORMAL_RUN, run.directory)
    assert child.communicate() == ("", "")
    assert child.returncode == 0
    assert files(run.directory)


MEMORY = """
import ctypes, sys
from pathlib import Path
import attrs, jax, jax.numpy as jnp
from checkpointed import like, restore, run_in, saving, state_at
from trainer_core.types import Data

def memory(kind):
    # What was freed, and glibc keeps for what is allocated next, is not held by anybody.
    getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)(0)
    # Not ru_maxrss, which on Linux begins at the peak of the process that started this one.
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{kind}:")[1].split()[0]) * 1024

run, megabytes, saves = run_in(Path(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3])
size = (megabytes, 2**15)  # eight of them

def state(step):
    large = {str(n): jnp.full(size, step, "float32") for n in range(8)}
    return attrs.evolve(state_at(step, run.mesh), extra=large)

if saves:
    with saving(run) as plugin:
        for step in range(1, saves + 1):
            plugin.save(run, step, state(step), Data())
            if step in (saves // 5, saves):
                plugin._writer.wait()
                print(memory("VmRSS"), flush=True)
else:
    wanted = like(jax.eval_shape(lambda: state(0)), run.mesh)
    before = memory("VmRSS")
    found = restore(run, wanted)
    assert int(found.step) == 1
    print(before, memory("VmHWM"))
"""


def memory(run: Run, megabytes: int, saves: int) -> list[int]:
    child = python(MEMORY, run.directory, megabytes, saves)
    printed, errors = child.communicate()
    assert child.returncode == 0, errors
    return [int(number) for number in printed.split()]


@pytest.mark.long
def test_fifty_saves_take_no_more_memory_than_ten(run: Run) -> None:
    after_ten, after_fifty = memory(run, megabytes=16, saves=50)
    # 40 saves that each kept their arrays would be 640 MiB.
    assert after_fifty - after_ten < 32 * 2**20


@pytest.mark.long
def test_a_restore_takes_little_more_memory_than_the_arrays(run: Run) -> None:
    size = 256
    memory(run, size, saves=1)
    before, most = memory(run, size, saves=0)
    # The arrays, which lie in the host's memory here, and at most 1.3 times as much beside them,
    # with what is imported meanwhile. There are eight, of which a few are held twice at a time.
    assert most - before < 2.3 * size * 2**20
