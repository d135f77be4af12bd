"""Which checkpoints stay on disk."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import attrs
import jax
import jax.numpy as jnp
import pytest
from checkpointed import bits, folder, like, restore, save, saving, state_at
from trainer_checkpoint import keeping
from trainer_checkpoint.meta import seal
from trainer_checkpoint.steps import steps

from trainer_core.errors import RunError
from trainer_core.run import Run
from trainer_core.saved import SAVED
from trainer_core.types import Data, TrainState


def bad_at(step: int, run: Run) -> TrainState:
    """A state whose parameters are not finite."""
    state = state_at(step, run.mesh)
    return attrs.evolve(state, params=jax.tree.map(lambda x: x.at[0].set(jnp.nan), state.params))


def test_the_newest_are_kept(run: Run) -> None:
    save(run, *(state_at(step, run.mesh) for step in (1, 2, 3, 4)), keep=2)
    assert steps(run.directory / "checkpoints") == [3, 4]


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """The inodes of what is on the disk for good."""
    inodes: set[int] = set()
    sync = os.fsync

    def noted(opened: int) -> None:
        sync(opened)
        inodes.add(os.fstat(opened).st_ino)

    monkeypatch.setattr(os, "fsync", noted)
    return inodes


def test_an_older_one_goes_when_no_power_failure_takes_the_newer_back(
    run: Run, synced: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    deleted = []
    delete = keeping.delete

    def checked(directory: Path, step: int) -> None:
        newer = directory / str(step + 1)
        # TensorStore's own calls are not Python's.
        for each in (*newer.rglob("*"), newer, directory, run.directory / SAVED):
            assert each.stat().st_ino in synced, each
        deleted.append(step)
        delete(directory, step)

    monkeypatch.setattr(keeping, "delete", checked)
    save(run, *(state_at(step, run.mesh) for step in (1, 2, 3)), keep=1)
    assert deleted == [1, 2]


def test_where_the_disk_does_not_take_the_newer_the_older_stays(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(run, state_at(1, run.mesh), keep=1)

    def full(opened: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(RunError, match=r"step 2 cannot .*no space left.* intact: steps 1$"):
            save(run, state_at(2, run.mesh), keep=1)
    assert folder(run, 1).is_dir()


def test_multiples_of_keep_every_are_kept_for_ever(run: Run) -> None:
    save(run, *(state_at(step, run.mesh) for step in (2, 3, 4, 5, 6)), keep=1, keep_every=2)
    assert steps(run.directory / "checkpoints") == [2, 4, 6]


@pytest.mark.parametrize(
    ("saved", "keep", "left"),
    [
        ("good bad", 1, [1, 2]),
        ("good bad bad", 1, [1, 3]),
        ("good bad bad", 2, [1, 3]),
        ("good good bad", 2, [1, 2, 3]),
        ("good good bad", 1, [2, 3]),
        ("good bad good", 2, [1, 3]),
        ("good bad good", 1, [3]),
    ],
)
def test_what_is_not_finite_takes_the_place_of_nothing_that_is(
    run: Run, saved: str, keep: int, left: list[int]
) -> None:
    make = {"good": state_at, "bad": lambda step, _: bad_at(step, run)}
    states = [make[kind](step, run.mesh) for step, kind in enumerate(saved.split(), 1)]
    save(run, *states, keep=keep)
    assert steps(run.directory / "checkpoints") == left
    newest = max(step for step, kind in enumerate(saved.split(), 1) if kind == "good")
    restored = restore(run, like(states[0], run.mesh))
    assert restored is not None
    assert bits(restored) == bits(state_at(newest, run.mesh))


def test_what_is_not_finite_stays_where_it_was_to_stay_for_ever(run: Run) -> None:
    states = [state_at(1, run.mesh), bad_at(2, run), bad_at(3, run), state_at(4, run.mesh)]
    save(run, *states, keep=1, keep_every=2)
    assert steps(run.directory / "checkpoints") == [2, 4]


@pytest.mark.parametrize("content", ["", "{}", "[]", "[" * 100_000, seal({"finite": True})])
def test_what_has_no_seal_takes_no_place_and_is_not_deleted(run: Run, content: str) -> None:
    save(run, state_at(1, run.mesh), state_at(2, run.mesh))
    (folder(run, 2) / "meta" / "metadata").write_text(content)
    with saving(run, keep=1) as plugin:
        plugin.save(run, 3, state_at(3, run.mesh), Data())
    assert steps(run.directory / "checkpoints") == [2, 3]
    (folder(run, 3) / "meta" / "metadata").write_text(content)
    with saving(run, keep=1) as plugin:
        plugin.save(run, 4, bad_at(4, run), Data())
    assert steps(run.directory / "checkpoints") == [2, 3, 4]


def test_a_resumed_run_goes_on_deleting_what_it_found(run: Run) -> None:
    save(run, state_at(1, run.mesh), state_at(2, run.mesh), keep=2)
    with saving(run, keep=2) as plugin:
        plugin.restore(run, like(state_at(2, run.mesh), run.mesh), Data())
        plugin.save(run, 3, state_at(3, run.mesh), Data())
    assert steps(run.directory / "checkpoints") == [2, 3]


def test_an_incomplete_folder_does_not_take_the_place_of_a_complete_checkpoint(run: Run) -> None:
    save(run, state_at(1, run.mesh))
    (run.directory / "checkpoints" / "2").mkdir()
    save(run, state_at(3, run.mesh), keep=2)
    assert folder(run, 1).is_dir()


def test_saving_the_step_that_was_restored_does_nothing(run: Run) -> None:
    state = state_at(1, run.mesh)
    save(run, state)
    with saving(run) as plugin:
        plugin.restore(run, like(state, run.mesh), Data())
        plugin.save(run, 1, state, Data())
    assert restore(run, like(state, run.mesh)) is not None


def test_what_a_killed_process_left_is_cleaned_up_by_the_next_save(run: Run) -> None:
    checkpoints = run.directory / "checkpoints"
    save(run, state_at(1, run.mesh))
    for name in ("2.orbax-checkpoint-tmp", "0.deleting"):
        (checkpoints / name / "state").mkdir(parents=True)
    save(run, state_at(2, run.mesh))
    assert sorted(path.name for path in checkpoints.iterdir()) == ["1", "2"]


@pytest.mark.parametrize(
    "name",
    ["3.orbax-checkpoint-tmp", "3.deleting", "3.damaged", "3.damaged-2", "03", "-3", "x", "²"],
)
def test_other_names_are_no_steps(tmp_path: Any, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / "20").mkdir()
    (tmp_path / "9").mkdir()
    (tmp_path / "5").write_text("a file")
    assert steps(tmp_path) == [9, 20]


def test_a_folder_that_is_missing_has_no_steps(tmp_path: Any) -> None:
    assert steps(tmp_path / "missing") == []


def test_a_file_in_the_place_of_a_step_is_set_aside(run: Run, warned: Any) -> None:
    save(run, state_at(1, run.mesh))
    folder(run, 2).write_text("of mine")
    folder(run, 3).symlink_to("nowhere")
    with saving(run, keep=3) as plugin:
        plugin.restore(run, like(state_at(1, run.mesh), run.mesh), Data())
        for step in (2, 3):
            plugin.save(run, step, state_at(step, run.mesh), Data())
    assert steps(run.directory / "checkpoints") == [1, 2, 3]
    assert (run.directory / "checkpoints" / "2.damaged").read_text() == "of mine"
    assert warned() == [
        f"{folder(run, step)} is no folder: it is now {step}.damaged" for step in (2, 3)
    ]
