"""What leads out of a checkpoint's folder is not followed, whoever reads it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpointed import bits, folder, like, restore, save, state_at
from trainer_checkpoint.steps import steps
from trainer_checkpoint.stored import TREE

from trainer_core.cli import run as trainer
from trainer_core.run import Run


def lead_out(path: Path) -> None:
    """Move what is at a path out of the checkpoint, and leave a link that leads there."""
    outside = path.parents[4] / "outside"
    shutil.move(path, outside)
    path.symlink_to(os.path.relpath(outside, path.parent))


def arrays(step: Path) -> Path:
    return max((step / "state").rglob("d/*"), key=lambda path: path.stat().st_size)


def renamed(step: Path, name: str) -> None:
    description = step / "state" / TREE
    text = description.read_text()
    assert '"key": "step"' in text
    description.write_text(text.replace('"key": "step"', f'"key": "{name}"'))


WAYS_OUT: dict[str, Callable[[Path], Any]] = {
    "the arrays": lambda step: lead_out(arrays(step)),
    "a folder in the state": lambda step: lead_out(step / "state" / "ocdbt.process_0"),
    "the state": lambda step: lead_out(step / "state"),
    "what the arrays are": lambda step: lead_out(step / "meta" / "metadata"),
    "the data's position": lambda step: lead_out(step / "data" / "process_0-of-1.json"),
    "a name with dots": lambda step: renamed(step, "../../../secret"),
    "an absolute name": lambda step: renamed(step, "/etc/secret"),
}


@pytest.mark.parametrize("way", WAYS_OUT)
def test_a_checkpoint_that_leads_out_of_its_folder_is_not_read(
    way: str, run: Run, warned: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = state_at(1, run.mesh)
    save(run, older, state_at(2, run.mesh))
    WAYS_OUT[way](folder(run, 2))
    # A run goes on from the one before; all that the link leads to is what was saved.
    restored = restore(run, like(older, run.mesh))
    assert restored is not None
    assert bits(restored) == bits(older)
    assert "leads out of it" in warned()[0]
    assert str(folder(run, 2)) in warned()[0]
    monkeypatch.chdir(run.directory.parent)
    for command in (
        ["checkpoint", "show", "run"],
        ["checkpoint", "diff", "run", "run/checkpoints/1"],
        ["convert", "run/checkpoints/2", "run.name=new"],
    ):
        assert trainer(command) == 2, command
        assert "leads out of it" in capsys.readouterr().err
    assert trainer(["checkpoint", "verify", "run"]) == 1
    assert "leads out" in " ".join(capsys.readouterr().out.split())
    assert not Path("runs").exists()


def test_links_that_stay_inside_or_lead_to_a_checkpoint_are_followed(
    run: Run, tmp_path: Path, warned: Any
) -> None:
    state = state_at(1, run.mesh)
    save(run, state)
    file = arrays(folder(run, 1))
    file.rename(file.with_name("beside"))
    file.symlink_to("beside")
    # As a person does whose disk is full.
    shutil.move(run.directory / "checkpoints", tmp_path / "larger")
    (run.directory / "checkpoints").symlink_to(tmp_path / "larger")
    restored = restore(run, like(state, run.mesh))
    assert restored is not None
    assert bits(restored) == bits(state)
    assert not warned()


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def endless(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(3 * 2**30)  # of which the disk holds nothing


@pytest.mark.parametrize("name", ["meta/metadata", "data/process_0-of-1.json", "state/_METADATA"])
@pytest.mark.parametrize(
    ("make", "said"), [(pipe, "neither a file nor a folder"), (endless, "has 3 GiB, and no such")]
)
def test_what_is_no_file_or_has_no_end_is_not_read(
    run: Run, warned: Any, capsys: Any, name: str, make: Callable[[Path], None], said: str
) -> None:
    older = state_at(1, run.mesh)
    save(run, older, state_at(2, run.mesh))
    make(folder(run, 2) / name)
    restored = restore(run, like(older, run.mesh))
    assert restored is not None
    assert bits(restored) == bits(older)
    [warning] = warned()
    assert f"{folder(run, 2)} is not used: {name} " in warning
    assert said in warning
    for command in (["list", "--json"], ["verify", "--json"]):
        trainer(["checkpoint", command[0], str(run.directory), *command[1:]])
        assert said in json.loads(capsys.readouterr().out)[-1]["problem"]


@pytest.mark.parametrize("make", [pipe, endless])
def test_nor_is_it_where_old_checkpoints_are_deleted(
    run: Run, make: Callable[[Path], None]
) -> None:
    save(run, state_at(1, run.mesh))
    make(folder(run, 1) / "meta" / "metadata")
    save(run, state_at(2, run.mesh), keep=1)
    assert steps(run.directory / "checkpoints") == [1, 2]
