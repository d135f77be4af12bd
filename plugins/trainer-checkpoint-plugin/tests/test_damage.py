"""A checkpoint that is damaged is never used, never deleted, and named in one warning."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import jax
import jax.numpy as jnp
import pytest
from checkpointed import bits, files, folder, like, restore, save, saving, state_at
from trainer_checkpoint.steps import steps

from trainer_core.errors import RunError
from trainer_core.run import Run
from trainer_core.types import Data, TrainState


@pytest.fixture
def older(run: Run) -> TrainState:
    """Steps 1 and 2 are on disk; this is step 1."""
    older = state_at(1, run.mesh)
    save(run, older, state_at(2, run.mesh))
    return older


def flip_a_bit(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def largest(directory: Path) -> Path:
    """The file with the arrays in it."""
    return max(directory.rglob("d/*"), key=lambda path: path.stat().st_size)


def flip_in_the_arrays(path: Path) -> None:
    file = largest(path / "state")
    flip_a_bit(file, file.stat().st_size * 4)


def truncate_the_arrays(path: Path) -> None:
    file = largest(path / "state")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(path: Path) -> None:
    shutil.rmtree(path)
    path.mkdir()


LARGE = ["layers/kernel", "embed.ding/embedding", "extra/ema/layers"]
DAMAGES: dict[str, Callable[[Path], Any]] = {
    "one bit of the arrays": flip_in_the_arrays,
    "arrays truncated": truncate_the_arrays,
    "arrays missing": lambda path: largest(path / "state").unlink(),
    "state missing": lambda path: shutil.rmtree(path / "state"),
    "manifest missing": lambda path: (path / "state" / "manifest.ocdbt").unlink(),
    "one bit of the digests": lambda path: flip_a_bit(path / "meta" / "metadata", 2001),
    "meta missing": lambda path: (path / "meta" / "metadata").unlink(),
    "data missing": lambda path: (path / "data" / "process_0-of-1.json").unlink(),
    "data truncated": lambda path: (path / "data" / "process_0-of-1.json").write_text('{"po'),
    "an empty folder": empty,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_step_is_passed_over_with_one_warning(
    run: Run, older: TrainState, warned: Any, capfd: Any, damage: str
) -> None:
    DAMAGES[damage](folder(run, 2))
    before = files(run.directory)
    restored = restore(run, like(older, run.mesh))
    assert restored is not None
    assert bits(restored) == bits(older)
    [warning] = warned()
    assert str(folder(run, 2)) in warning
    assert files(run.directory) == before
    assert capfd.readouterr().err == ""


def test_a_step_copied_under_another_number_is_passed_over(run: Run, older: TrainState) -> None:
    shutil.copytree(folder(run, 1), folder(run, 7))
    shutil.rmtree(folder(run, 2))
    restored = restore(run, like(older, run.mesh))
    assert restored is not None
    assert bits(restored) == bits(older)


def test_parameters_that_are_not_finite_are_passed_over(
    run: Run, older: TrainState, warned: Any
) -> None:
    bad = attrs.evolve(older, params=jax.tree.map(lambda x: x.at[0].set(jnp.nan), older.params))
    save(run, attrs.evolve(bad, step=jnp.int32(3)), keep=3)
    restored = restore(run, like(older, run.mesh))
    assert restored is not None
    assert int(restored.step) == 2
    assert "not finite" in warned()[0]


def test_with_all_damaged_the_run_fails_and_nothing_is_deleted(
    run: Run, older: TrainState, warned: Any
) -> None:
    for step in (1, 2):
        flip_in_the_arrays(folder(run, step))
    before = files(run.directory)
    with pytest.raises(RunError, match=r"steps 1, 2.*nothing was deleted") as error:
        restore(run, like(older, run.mesh))
    assert error.value.exit_code == 1
    assert len(warned()) == 2
    assert files(run.directory) == before


@pytest.mark.parametrize("damage", ["nothing but arrays", "an empty folder"])
@pytest.mark.parametrize("beside", ["config.toml", "versions.json"])
def test_half_copied_ones_of_a_run_of_ours_are_incomplete(
    run: Run, older: TrainState, warned: Any, damage: str, beside: str
) -> None:
    (run.directory / beside).touch()
    for step in (1, 2):
        if damage == "an empty folder":
            empty(folder(run, step))
        else:
            shutil.rmtree(folder(run, step) / "meta")
    with pytest.raises(RunError, match=r"steps 1, 2; none is complete.*nothing was del") as error:
        restore(run, like(older, run.mesh))
    assert error.value.exit_code == 1
    assert "other code" not in str(error.value)
    assert [each.endswith("meta/metadata is missing") for each in warned()] == [True, True]


def test_the_warning_names_the_array_that_is_damaged(
    run: Run, older: TrainState, warned: Any
) -> None:
    flip_in_the_arrays(folder(run, 2))
    restore(run, like(older, run.mesh))
    assert any(name in warned()[0] for name in LARGE)


@pytest.mark.parametrize("damage", ["arrays truncated", "arrays missing"])
def test_the_warning_names_an_array_that_cannot_be_read(
    run: Run, older: TrainState, warned: Any, damage: str
) -> None:
    DAMAGES[damage](folder(run, 2))
    restore(run, like(older, run.mesh))
    named = warned()[0].partition(" is not used: ")[2].partition(" cannot be read")[0]
    assert any(named.endswith(name) for name in LARGE), warned()[0]


def test_a_damaged_step_is_set_aside_when_the_run_goes_on(run: Run, older: TrainState) -> None:
    flip_in_the_arrays(folder(run, 2))
    damaged = files(folder(run, 2))
    with saving(run, keep=2) as plugin:
        plugin.restore(run, like(older, run.mesh), Data())
        for step in (2, 3):
            plugin.save(run, step, state_at(step, run.mesh), Data())
    assert steps(run.directory / "checkpoints") == [2, 3]
    assert files(run.directory / "checkpoints" / "2.damaged") == damaged
    restored = restore(run, like(older, run.mesh))
    assert restored is not None
    assert bits(restored) == bits(state_at(3, run.mesh))


def flipped(content: bytes, chance: random.Random) -> bytes:
    damaged = bytearray(content)
    damaged[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    return bytes(damaged)


def cut(content: bytes, chance: random.Random) -> bytes:
    return content[: chance.randrange(len(content))]


def zeroed(content: bytes, chance: random.Random) -> bytes:
    """A page that a file system lost."""
    begin = chance.randrange(len(content))
    return content[:begin] + bytes(min(4096, len(content) - begin)) + content[begin + 4096 :]


FUZZED = {"a flipped bit": flipped, "cut off": cut, "a page of zeros": zeroed}


@pytest.mark.parametrize(
    ("how", "offsets"),
    [
        pytest.param("a flipped bit", 1),
        *(pytest.param(how, 4, marks=pytest.mark.long) for how in FUZZED),
    ],
)
def test_damage_anywhere_is_found_or_harmless(
    how: str, offsets: int, run: Run, record_property: Any
) -> None:
    """Every file, at many offsets: what is restored is what was saved, or nothing is."""
    state = state_at(1, run.mesh)
    save(run, state)
    chance = random.Random(how)
    found = harmless = 0
    for name, content in files(folder(run, 1)).items():
        path = folder(run, 1) / name
        for _ in range(offsets):
            path.write_bytes(FUZZED[how](content, chance))
            try:
                restored = restore(run, like(state, run.mesh))
            except RunError:
                found += 1
            else:
                assert restored is not None
                assert bits(restored) == bits(state), name
                harmless += 1
        path.write_bytes(content)
    record_property("found", found)
    record_property("harmless", harmless)
    assert found > 0  # and files that other files repeat are harmless
