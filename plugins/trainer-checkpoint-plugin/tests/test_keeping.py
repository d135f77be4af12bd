"""Which checkpoints stay on disk."""

from __future__ import annotations

from typing import Any

import pytest
from checkpointed import folder, like, restore, save, saving, state_at
from trainer_checkpoint.steps import steps

from trainer_core.run import Run
from trainer_core.types import Data


def test_the_newest_are_kept(run: Run) -> None:
    save(run, *(state_at(step, run.mesh) for step in (1, 2, 3, 4)), keep=2)
    assert steps(run.directory / "checkpoints") == [3, 4]


def test_multiples_of_keep_every_are_kept_for_ever(run: Run) -> None:
    save(run, *(state_at(step, run.mesh) for step in (2, 3, 4, 5, 6)), keep=1, keep_every=2)
    assert steps(run.directory / "checkpoints") == [2, 4, 6]


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
