"""A checkpoint that is damaged is never used, never deleted, and named in one warning."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import jax
import jax.numpy as jnp
import optax
import pytest
from checkpointed import bits, files, folder, like, restore, run_in, save, saving, state_at
from trainer_checkpoint import reader
from trainer_checkpoint.meta import seal, unseal
from trainer_checkpoint.quiet import reason
from trainer_checkpoint.steps import steps

from trainer_core.cli import run as trainer
from trainer_core.errors import RunError, UserError
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
    "its tree missing": lambda path: shutil.rmtree(path / "state" / "d"),
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


# What a stranger may have written, with the right checksum; and what never had one.
UNSEALED = ["[]", '"x"', "7", "null", "{}", "", "[" * 100_000, '{"a": ' * 100_000]
HOSTILE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "nothing else": lambda meta: [meta.pop(name) for name in list(meta) if name != "step"],
    "no format": lambda meta: meta.pop("format"),
    "a format that is no number": lambda meta: meta.update(format="x"),
    "a step that is no number": lambda meta: meta.update(step="2"),
    "no mark": lambda meta: meta.pop("mark"),
    "no finite": lambda meta: meta.pop("finite"),
    "no digest": lambda meta: meta.pop("digest"),
    "a digest that is none": lambda meta: meta.update(digest="\x1b[2J"),
    "a list of versions": lambda meta: meta.update(versions=[]),
    "a list of tables": lambda meta: meta.update(config=[]),
    "a table that is none": lambda meta: meta["config"].update(plugins=7),
    "a list of leaves": lambda meta: meta.update(leaves=[]),
    "a leaf that is none": lambda meta: meta["leaves"].update(step=7),
    "a leaf without a shape": lambda meta: meta["leaves"]["step"].pop("shape"),
    "a leaf without a digest": lambda meta: meta["leaves"]["step"].pop("digest"),
    "a dtype that is none": lambda meta: meta["leaves"]["step"].update(dtype=[]),
}


def sealed(file: Path, change: Callable[[dict[str, Any]], Any]) -> str:
    content = unseal(file)
    change(content)
    return seal(content)


@pytest.mark.parametrize("content", [*UNSEALED, *HOSTILE])
def test_what_this_plugin_did_not_write_is_passed_over(
    run: Run, older: TrainState, warned: Any, capsys: Any, content: str
) -> None:
    file = folder(run, 2) / "meta" / "metadata"
    file.write_text(sealed(file, HOSTILE[content]) if content in HOSTILE else content)
    restored = restore(run, like(older, run.mesh))
    assert restored is not None
    assert bits(restored) == bits(older)
    [warning] = warned()
    assert f"{folder(run, 2)} is not used: meta/metadata " in warning
    where = str(run.directory)
    assert trainer(["checkpoint", "list", where, "--json"]) == 0
    assert trainer(["checkpoint", "verify", where]) == 1
    assert "meta/metadata" in capsys.readouterr().out
    assert trainer(["checkpoint", "show", where]) == 2
    assert "meta/metadata" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content", [*UNSEALED, seal({}), seal({"position": 7}), seal({"position": None})]
)
def test_a_position_that_is_none_is_passed_over(
    run: Run, older: TrainState, warned: Any, content: str
) -> None:
    (folder(run, 2) / "data" / "process_0-of-1.json").write_text(content)
    restored = restore(run, like(older, run.mesh))
    assert restored is not None
    assert bits(restored) == bits(older)
    assert "is not used: data/process_0-of-1.json " in warned()[0]
    assert trainer(["checkpoint", "verify", str(run.directory)]) == 1


@pytest.mark.parametrize(
    ("part", "is_other_run", "why"),
    [
        ("data/process_0-of-1.json", False, "data/process_0-of-1.json is of step 1"),
        ("data/process_0-of-1.json", True, "process_0-of-1.json is of another save of step 2"),
        ("meta/metadata", True, "process_0-of-1.json is of another save of step 2"),
        ("meta/metadata", False, "it holds step 1"),
    ],
)
def test_what_was_saved_with_another_checkpoint_is_passed_over(
    run: Run, older: TrainState, warned: Any, capsys: Any, part: str, is_other_run: bool, why: str
) -> None:
    """A copy over an older checkpoint that stopped half way leaves some files of each."""
    elsewhere = run_in(run.directory.parent / "elsewhere")
    save(elsewhere, state_at(2, run.mesh))
    shutil.copy(
        (folder(elsewhere, 2) if is_other_run else folder(run, 1)) / part, folder(run, 2) / part
    )
    restored = restore(run, like(older, run.mesh))
    assert restored is not None
    assert bits(restored) == bits(older)
    [warning] = warned()
    assert warning.startswith(f"checkpoint {folder(run, 2)} is not used: ")
    assert warning.endswith(why)
    assert trainer(["checkpoint", "verify", str(run.directory), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)[1]["problem"].endswith(why)


def test_a_description_nested_without_end_is_passed_over(
    run: Run, older: TrainState, warned: Any
) -> None:
    (folder(run, 2) / "state" / "_METADATA").write_text('{"tree_metadata": ' + "[" * 100_000)
    restored = restore(run, like(older, run.mesh))
    assert restored is not None
    assert bits(restored) == bits(older)
    assert len(warned()) == 1
    assert trainer(["checkpoint", "verify", str(run.directory)]) == 1


def test_a_checkpoint_of_a_newer_version_is_refused(run: Run, older: TrainState) -> None:
    file = folder(run, 2) / "meta" / "metadata"
    file.write_text(seal({"format": 99}))
    with pytest.raises(UserError, match="in format 99; this one reads up to format 1: install"):
        restore(run, like(older, run.mesh))


def test_a_step_copied_under_another_number_is_passed_over(run: Run, older: TrainState) -> None:
    shutil.copytree(folder(run, 1), folder(run, 7))
    shutil.rmtree(folder(run, 2))
    restored = restore(run, like(older, run.mesh))
    assert restored is not None
    assert bits(restored) == bits(older)


def spoiled(state: TrainState, path: str, value: float) -> TrainState:
    """A state in which one number of the leaf at a path is another."""

    def spoil(keys: Any, leaf: Any) -> Any:
        if jax.tree_util.keystr(keys, simple=True, separator="/") != path:
            return leaf
        return leaf.at[(0,) * leaf.ndim].set(value)

    return jax.tree_util.tree_map_with_path(spoil, state)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("params/layers/scale", jnp.nan),
        ("params/layers/kernel", jnp.inf),
        ("buffers/mean", jnp.nan),
        ("opt_state/1/0/nu/layers/kernel", jnp.inf),
        ("opt_state/1/0/mu/layers/scale", jnp.nan),
    ],
)
def test_a_state_that_is_not_finite_is_passed_over(
    run: Run, older: TrainState, warned: Any, path: str, value: float
) -> None:
    save(run, spoiled(attrs.evolve(older, step=jnp.int32(3)), path, value), keep=3)
    restored = restore(run, like(older, run.mesh))
    assert restored is not None
    assert int(restored.step) == 2
    assert warned() == [f"checkpoint {folder(run, 3)} is not used: not finite: {path}"]


def test_an_infinity_that_may_be_meant_is_restored_and_a_nan_in_its_place_is_not(
    run: Run, warned: Any
) -> None:
    """The least loss so far begins with one, and a buffer may be a mask."""
    tx = optax.chain(optax.adam(0.1), optax.contrib.reduce_on_plateau())
    made = state_at(1, run.mesh, tx)
    least = "opt_state/1/best_value"
    [before] = [each for each in jax.tree.leaves(made.opt_state) if not jnp.all(jnp.isfinite(each))]
    assert before.shape == ()
    state = spoiled(made, "buffers/mean", -jnp.inf)
    save(run, state)
    restored = restore(run, like(state, run.mesh))
    assert restored is not None
    assert bits(restored) == bits(state)
    save(run, spoiled(attrs.evolve(state, step=jnp.int32(2)), least, jnp.nan), keep=3)
    restored = restore(run, like(state, run.mesh))
    assert restored is not None
    assert int(restored.step) == 1
    assert warned() == [f"checkpoint {folder(run, 2)} is not used: not finite: {least}"]


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


def test_where_no_array_can_be_read_the_file_and_its_fault_are_named_soon(
    run: Run, older: TrainState, warned: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in folder(run, 2).glob("state/**/d/*"):
        flip_a_bit(path, path.stat().st_size * 4)
    tried: list[int] = []
    restored = reader._restored

    def counted(path: Path, targets: Any, **some: Any) -> Any:
        tried.append(len(targets))
        return restored(path, targets, **some)

    monkeypatch.setattr(reader, "_restored", counted)
    restore(run, like(older, run.mesh))
    (_, *alone, _) = tried  # before these all of step 2, after them all of step 1
    assert alone == [1, 1, 1]
    assert re.search(r' its arrays cannot be read: [A-Z_]+: "/.*/d/\w+": .*\w$', warned()[0])


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        ("its tree missing", r'its arrays cannot be read: NOT_FOUND: "/.*/2/state/d/\w+"$'),
        (
            "arrays truncated",
            r'cannot be read: OUT_OF_RANGE: "/.*/2/state/": Requested byte range \[.*\) is not',
        ),
    ],
)
def test_the_warning_says_what_the_storage_said(
    run: Run, older: TrainState, warned: Any, damage: str, why: str
) -> None:
    """Orbax raises `Encountered error while reading`, and has the rest as its cause."""
    DAMAGES[damage](folder(run, 2))
    restore(run, like(older, run.mesh))
    assert re.search(why, warned()[0]), warned()[0]


def test_an_error_of_no_storage_is_told_with_what_led_to_it() -> None:
    inner = KeyError("kernel")
    error = RuntimeError("no luck [tensorstore_spec={}]")
    error.__cause__ = inner
    assert reason(error) == "RuntimeError: no luck, from KeyError: 'kernel'"


def test_a_wrong_digest_under_a_right_seal_is_not_believed(
    run: Run, older: TrainState, warned: Any, capsys: Any
) -> None:
    file = folder(run, 2) / "meta" / "metadata"

    def swap(meta: dict[str, Any]) -> None:
        leaves = meta["leaves"]
        leaves["params/layers/kernel"]["digest"] = leaves["params/layers/scale"]["digest"]

    file.write_text(sealed(file, swap))
    restored = restore(run, like(older, run.mesh))
    assert restored is not None
    assert bits(restored) == bits(older)
    assert warned() == [
        f"checkpoint {folder(run, 2)} is not used: not what was saved: params/layers/kernel"
    ]
    assert trainer(["checkpoint", "verify", str(run.directory)]) == 1
    assert "not what was saved: params/layers/kernel" in capsys.readouterr().out


@pytest.mark.parametrize("how", ["a bit of it", pytest.param("all of it", marks=pytest.mark.long)])
def test_verify_passes_nothing_that_a_run_does_not_go_on_from(
    run: Run, older: TrainState, how: str
) -> None:
    passed_over = 0
    for name, content in files(folder(run, 2)).items():
        path = folder(run, 2) / name
        path.unlink() if how == "all of it" else flip_a_bit(path, 8 * (len(content) // 2))
        restored = restore(run, like(older, run.mesh))
        assert restored is not None
        if int(restored.step) != 2:
            passed_over += 1
            assert trainer(["checkpoint", "verify", str(run.directory)]) == 1, name
        path.write_bytes(content)
    assert passed_over > 0
    assert trainer(["checkpoint", "verify", str(run.directory)]) == 0


def test_verify_reads_what_a_run_of_64_bits_saved(run: Run) -> None:
    with jax.enable_x64(True):
        wide = {"float": jnp.arange(5000, dtype=jnp.float64) / 3, "int": jnp.int64(2**40)}
        save(run, attrs.evolve(state_at(1, run.mesh), extra=wide))
    assert trainer(["checkpoint", "verify", str(run.directory)]) == 0


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


def tally(run: Run, how: str, offsets: int) -> tuple[int, int]:
    """Damage every file of a checkpoint at so many offsets; return how often it was found, and not.

    Where it is not, what is restored is what was saved.
    """
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
    return found, harmless


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
    found, harmless = tally(run, how, offsets)
    record_property("found", found)
    record_property("harmless", harmless)
    assert found > 0  # and files that other files repeat are harmless
