"""Two runs never write to one directory, and a dead one keeps nobody out."""

from __future__ import annotations

import errno
import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from command import PERCEPTRON, read_until, running, trainer

from trainer_core import RunError, UserError, fit
from trainer_core.lock import LOCK, RunLock

RUN = ["train", *PERCEPTRON, "run.directory=run", "checkpoint.every=1", "run.eval_every=0"]


def metrics(directory: Path) -> list[dict[str, Any]]:
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_a_second_run_is_refused_until_the_first_is_dead(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()  # its lock is taken before anything is compiled
    with running(*RUN, "run.steps=1000000", folder=tmp_path) as first:
        read_until(first, "step ")
        second = trainer(*RUN, folder=tmp_path)
        assert second.returncode == 2
        assert f"another run is under way in 'run' (process {first.pid}, host" in second.stderr
        assert first.poll() is None
        first.send_signal(signal.SIGKILL)
        first.wait()
    with running(*RUN, "run.steps=1000000", folder=tmp_path) as third:
        assert "resumed" in read_until(third, "step ")


def test_a_run_whose_lock_was_deleted_ends_before_it_writes_with_another(tmp_path: Path) -> None:
    """As who believes that a killed run left it; then a second begins."""
    endless = (*RUN, "run.steps=1000000", "checkpoint.every=1000000")
    (tmp_path / "run").mkdir()
    with running(*endless, folder=tmp_path) as first:
        read_until(first, "step ")
        (tmp_path / "run" / LOCK).unlink()
        with running(*RUN, "run.steps=3", folder=tmp_path) as second:
            assert first.wait(timeout=30) == 1
            assert first.stdout is not None
            said = first.stdout.read()
            assert "error: run/.lock, which says that this run has 'run', was deleted or re" in said
            assert "Traceback" not in said
            assert second.wait(timeout=60) == 0
    assert [line["step"] for line in metrics(tmp_path / "run")] == [1, 2, 3]
    assert not (tmp_path / "run" / "error.log").exists()


@pytest.mark.parametrize("how", ["deleted", "replaced"])
def test_a_lock_that_is_another_file_is_noticed(tmp_path: Path, how: str) -> None:
    with RunLock(tmp_path) as lock:
        lock.take()
        lock.check()
        (tmp_path / LOCK).unlink()
        if how == "replaced":
            (tmp_path / LOCK).touch()
        with pytest.raises(RunError, match="was deleted or replaced while the run trained"):
            lock.check()


def test_where_a_file_system_gives_a_file_other_numbers_the_lock_is_not_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stat = os.stat
    other = tmp_path / "other"
    other.touch()

    def elsewhere(path: Any, *rest: Any, **options: Any) -> os.stat_result:
        return stat(other if Path(path).name == LOCK else path, *rest, **options)

    monkeypatch.setattr(os, "stat", elsewhere)
    with RunLock(tmp_path) as lock:
        lock.take()
        lock.check()
        (tmp_path / LOCK).unlink()
        lock.check()


def test_in_one_process_too(tmp_path: Path) -> None:
    with RunLock(tmp_path) as one, RunLock(tmp_path) as other:
        one.take()
        one.take()  # that it has
        with pytest.raises(UserError, match="another run is under way"):
            other.take()
    with RunLock(tmp_path) as other:
        other.take()


@pytest.mark.parametrize("what", ["a link to it", "where it is seen from"])
def test_what_is_renamed_while_a_run_is_under_way_is_free_when_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    (tmp_path / "runs" / "real").mkdir(parents=True)
    (tmp_path / "runs" / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path)
    with RunLock(Path("runs/link")) as lock:
        lock.take()
        if what == "where it is seen from":
            monkeypatch.chdir(tmp_path / "runs")
        else:
            Path("runs/link").rename("runs/renamed")
    with RunLock(tmp_path / "runs" / "real") as lock:
        lock.take()


def test_a_lock_file_that_says_nothing_is_no_reason_to_fail(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text("{torn")
    with RunLock(tmp_path) as lock:
        lock.take()
    assert '"process"' in (tmp_path / LOCK).read_text()


def test_a_run_that_was_overtaken_while_it_was_compiled_begins_nothing(
    recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both begin where there is no directory; the other is through when this one would write."""
    config = recipe()
    overtaken = threading.Event()
    take = RunLock.take

    def overtaking(lock: RunLock) -> None:
        if not overtaken.is_set():
            overtaken.set()
            Path(config["run"]["directory"]).joinpath("config.toml").write_text("")
        take(lock)

    monkeypatch.setattr(RunLock, "take", overtaking)
    with pytest.raises(UserError, match=r"another run began in .* is over; the same command again"):
        fit(config)


def test_a_file_system_without_locks_keeps_nobody_from_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import fcntl

    def none(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", none)
    with RunLock(tmp_path) as lock:
        lock.take()
    [record] = caplog.records
    assert "has no locks (No locks available): a second run there" in record.getMessage()


def test_a_lock_that_cannot_be_written_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / LOCK).mkdir()
    with RunLock(tmp_path) as lock, pytest.raises(UserError, match=r"choose another: run\.direct"):
        lock.take()
