"""`trainer checkpoint`: what it shows of ours and of others', and what counts as a difference."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import checkpointed
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from checkpointed import folder, save, state_at
from trainer_checkpoint.meta import seal, unseal

from trainer_core.cli import run as trainer


@pytest.fixture
def saved(run: Any) -> Any:
    """A run with checkpoints of the steps 1 and 2."""
    save(run, state_at(1, run.mesh), state_at(2, run.mesh))
    return run


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A checkpoint that other code wrote: a list, an empty node, an integer."""
    tree = {"params": {"layers": [{"w": np.ones((2, 3), np.float32)}], "none": {}}, "step": 7}
    ocp.PyTreeCheckpointer().save(tmp_path / "foreign", tree)
    return tmp_path / "foreign"


def test_show_lists_every_array_of_the_newest_step(saved: Any, capsys: Any) -> None:
    assert trainer(["checkpoint", "show", str(saved.directory), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["step"] == 2
    assert shown["config"] == checkpointed.CONFIG
    kernel = shown["arrays"]["params/layers/kernel"]
    assert (kernel["shape"], kernel["dtype"]) == ([128, 8], "float32")
    assert shown["arrays"]["opt_state/1/0/mu/layers/scale"]["dtype"] == "bfloat16"
    assert trainer(["checkpoint", "show", str(folder(saved, 1))]) == 0
    page = capsys.readouterr().out
    assert "step        1\n" in page
    assert "bfloat16  8 " in page
    assert all(len(line) <= 100 for line in page.splitlines())


def test_how_an_array_lay_on_many_devices_is_shown_without_them(tmp_path: Path) -> None:
    # Written by a process with four devices; this one has one.
    code = (
        "import sys, pathlib, checkpointed as c; run = c.run_in(pathlib.Path(sys.argv[1]), 4);"
        "c.save(run, c.state_at(1, run.mesh))"
    )
    writer = checkpointed.python(code, tmp_path / "run", devices=4)
    assert writer.wait(120) == 0
    from trainer_checkpoint.stored import look

    leaves = look(tmp_path / "run").leaves
    assert leaves["params/layers/kernel"].spec == "fsdp"
    assert leaves["step"].spec == ""


def test_show_reads_what_other_code_wrote(foreign: Path, capsys: Any) -> None:
    assert trainer(["checkpoint", "show", str(foreign), "--json"]) == 0
    arrays = json.loads(capsys.readouterr().out)["arrays"]
    assert arrays["params/layers/0/w"]["shape"] == [2, 3]
    assert "step" in arrays


def test_parts_that_a_manager_keeps_apart_are_one_checkpoint(tmp_path: Path, capsys: Any) -> None:
    tree = {"params": {"w": np.ones(3)}, "opt_state": {"mu": {"w": np.ones(3)}}}
    with ocp.CheckpointManager(tmp_path / "managed") as manager:
        parts = {name: ocp.args.PyTreeSave(part) for name, part in tree.items()}
        manager.save(7, args=ocp.args.Composite(**parts))
    ocp.PyTreeCheckpointer().save(tmp_path / "whole", tree)
    assert trainer(["checkpoint", "diff", str(tmp_path / "managed"), str(tmp_path / "whole")]) == 0
    assert capsys.readouterr().out.startswith("equal: 2 arrays")
    assert trainer(["checkpoint", "show", str(tmp_path)]) == 2  # these are not parts of one


def test_diff_of_a_checkpoint_with_itself_is_nothing(saved: Any, capsys: Any) -> None:
    path = str(folder(saved, 1))
    assert trainer(["checkpoint", "diff", path, path]) == 0
    assert capsys.readouterr().out.startswith("equal: ")


def test_diff_names_the_largest_difference_by_path(saved: Any, capsys: Any) -> None:
    a, b = str(folder(saved, 1)), str(folder(saved, 2))
    assert trainer(["checkpoint", "diff", a, b, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    first, second = (np.asarray(state_at(n, saved.mesh).params["layers"]["kernel"]) for n in (1, 2))
    assert found["params/layers/kernel"] == np.max(np.abs(first.astype(float) - second))
    assert found["step"] == 1.0
    assert found["buffers/count"] == 0.0
    # All are normal numbers, or words of a key: they differ by less than this.
    assert trainer(["checkpoint", "diff", a, b, "--tolerance", "20"]) == 0


def test_diff_of_what_is_not_finite_is_json_too(saved: Any, capsys: Any) -> None:
    other = state_at(1, saved.mesh)
    kernel = other.params["layers"]["kernel"]
    other.params["layers"]["kernel"] = kernel.at[0, 0].set(jnp.nan)
    elsewhere = checkpointed.run_in(saved.directory.parent / "other")
    save(elsewhere, other)
    paths = [str(folder(saved, 1)), str(elsewhere.directory)]
    assert trainer(["checkpoint", "diff", *paths, "--json"]) == 1

    def no_json(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    found = json.loads(capsys.readouterr().out, parse_constant=no_json)
    assert found["params/layers/kernel"] == "inf"
    assert found["step"] == 0.0


def test_diff_counts_what_is_missing_or_of_another_kind(saved: Any, capsys: Any) -> None:
    other = state_at(1, saved.mesh)
    other.params["layers"]["kernel"] = other.params["layers"]["kernel"].astype(jnp.bfloat16)
    del other.params["embed.ding"]
    elsewhere = checkpointed.run_in(saved.directory.parent / "other")
    save(elsewhere, other)
    a, b = str(folder(saved, 1)), str(elsewhere.directory)
    assert trainer(["checkpoint", "diff", a, b, "--tolerance", "1e9", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["params/embed.ding/embedding"] == f"only in {a}"
    assert found["params/layers/kernel"] == "float32[128, 8] against bfloat16[128, 8]"
    assert trainer(["checkpoint", "diff", a, b, "--tolerance", "1e9"]) == 1
    assert "2 of 15 arrays differ" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["show", "nothing"], "nothing does not exist; give a run"),
        (["show", "."], "holds no checkpoint that Orbax wrote"),
        (["shwo", "."], "did you mean 'show'"),
        (["diff", "."], "diff takes 2 paths, not 1"),
        (["diff", ".", ".", "--tolerance", "-1"], "-1"),
    ],
)
def test_mistakes(
    arguments: list[str], said: str, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert trainer(["checkpoint", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_a_damaged_checkpoint_is_named(saved: Any, capsys: Any) -> None:
    meta = folder(saved, 2) / "meta" / "metadata"
    meta.write_text(meta.read_text().replace('"step": 2', '"step": 3'))
    assert trainer(["checkpoint", "show", str(saved.directory)]) == 2
    assert "does not match its checksum" in capsys.readouterr().err


# ------------------------------------------------------------------ list and verify


def test_list_names_the_steps_and_what_is_no_checkpoint(saved: Any, capsys: Any) -> None:
    checkpoints = saved.directory / "checkpoints"
    (checkpoints / "3.damaged").mkdir()
    folder(saved, 1).joinpath("meta", "metadata").unlink()
    assert trainer(["checkpoint", "list", str(saved.directory), "--json"]) == 0
    found = {each["name"]: each for each in json.loads(capsys.readouterr().out)}
    assert list(found) == ["1", "2", "3.damaged"]
    assert found["1"]["problem"] == "meta/metadata is missing"
    assert found["2"]["problem"] == ""
    assert found["2"]["bytes"] > 128 * 8 * 4
    assert found["3.damaged"]["problem"] == "never read: its name is no step's"
    assert trainer(["checkpoint", "list", str(checkpoints)]) == 0
    page = capsys.readouterr().out
    assert "whole" in page
    assert all(len(line) <= 100 for line in page.splitlines())


def test_verify_reads_every_step_and_fails_where_one_is_damaged(saved: Any, capsys: Any) -> None:
    assert trainer(["checkpoint", "verify", str(saved.directory)]) == 0
    assert capsys.readouterr().out.count("verified") == 2
    arrays = max(folder(saved, 1).rglob("d/*"), key=lambda path: path.stat().st_size)
    content = bytearray(arrays.read_bytes())
    content[len(content) // 2] ^= 1
    arrays.write_bytes(content)
    assert trainer(["checkpoint", "verify", str(saved.directory), "--json"]) == 1
    damaged, whole = json.loads(capsys.readouterr().out)
    assert "not what was saved: " in damaged["problem"] or "cannot be read" in damaged["problem"]
    assert whole["problem"] == ""
    assert trainer(["checkpoint", "verify", str(folder(saved, 2))]) == 0
    assert trainer(["checkpoint", "verify", str(folder(saved, 1))]) == 1
    aside = folder(saved, 1).rename(folder(saved, 1).with_name("1.damaged"))
    assert trainer(["checkpoint", "verify", str(aside)]) == 1
    capsys.readouterr()
    assert trainer(["checkpoint", "list", str(folder(saved, 2)), "--json"]) == 0
    assert [each["name"] for each in json.loads(capsys.readouterr().out)] == ["2"]


def test_what_a_run_deletes_meanwhile_is_left_out(
    saved: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainer_checkpoint import verify

    positions = verify.positions

    def deleting(path: Path, meta: Any) -> Any:
        if path.parent.name == "1":
            shutil.rmtree(path.parent)
            raise FileNotFoundError(path)
        return positions(path, meta)

    monkeypatch.setattr(verify, "positions", deleting)
    assert trainer(["checkpoint", "list", str(saved.directory), "--json"]) == 0
    assert [each["name"] for each in json.loads(capsys.readouterr().out)] == ["2"]


@pytest.mark.parametrize(
    ("command", "usage"),
    [
        ("compare", "usage: trainer compare A B [KEY=VALUE ...] [OPTIONS]"),
        ("checkpoint", "usage: trainer checkpoint ACTION PATH [PATH ...] [OPTIONS]"),
    ],
)
def test_help_says_what_may_be_left_out(command: str, usage: str, capsys: Any) -> None:
    assert trainer([command, "--help"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == usage


@pytest.mark.parametrize("action", ["list", "verify"])
def test_what_holds_no_checkpoint_is_a_mistake(action: str, tmp_path: Path, capsys: Any) -> None:
    assert trainer(["checkpoint", action, str(tmp_path)]) == 2
    assert "holds no checkpoint of a run" in capsys.readouterr().err
    assert trainer(["checkpoint", action, str(tmp_path / "nope")]) == 2
    assert f"{tmp_path / 'nope'} does not exist; give a run" in capsys.readouterr().err


def test_no_name_in_a_checkpoint_acts_on_the_terminal(saved: Any, capsys: Any) -> None:
    acting = "\x1b]0;mine\x07"
    (saved.directory / "checkpoints" / acting).mkdir()
    described = folder(saved, 2) / "meta" / "metadata"
    meta = unseal(described)
    meta["leaves"][acting] = meta["leaves"]["step"]
    described.write_text(seal(meta))
    for action in ("list", "verify"):
        trainer(["checkpoint", action, str(saved.directory)])
        printed = capsys.readouterr()
        assert r"\x1b]0;mine\x07" in printed.out
        assert "\x1b" not in printed.out + printed.err
