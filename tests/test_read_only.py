"""A run directory that becomes read-only during a run: it fails, says so, and keeps what it has."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import PERCEPTRON, trainer

pytest.importorskip("trainer_checkpoint")

# Permissions do not bind who runs as root; this attribute of a folder does.
READ_ONLY = """
import subprocess, threading, time
from trainer_core import hookimpl, plugin, setting

@plugin
class ReadOnly:
    at: int = setting(0)

    @hookimpl
    def report(self, step):
        if step == self.at:
            while any(each.name == "checkpoint" for each in threading.enumerate()):
                time.sleep(0.01)  # what writes the checkpoint of step 2
            subprocess.run(["chattr", "+i", "run", "run/checkpoints"], check=True)
"""
SETTINGS = [
    "train",
    *PERCEPTRON,
    "run.directory=run",
    "run.steps=6",
    "run.eval_every=0",
    "checkpoint.every=2",
    "schedule.use=constant",
]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Where a run has the plugin `readonly:ReadOnly`; what that did is undone."""
    (tmp_path / "readonly.py").write_text(READ_ONLY)
    try:
        for sign in "+-":
            subprocess.run(["chattr", f"{sign}i", tmp_path], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"chattr +i is not for this user, or not for this file system: {error}")
    yield tmp_path
    subprocess.run(["chattr", "-R", "-i", tmp_path], check=True)


@pytest.mark.long
def test_a_run_whose_directory_becomes_read_only_ends_and_goes_on_later(folder: Path) -> None:
    done = trainer(*SETTINGS, "plugins.readonly={use='readonly:ReadOnly', at=3}", folder=folder)
    assert done.returncode == 1
    path = folder / "run" / "checkpoints" / "4"
    assert done.stderr == (
        f"error: the checkpoint of step 4 cannot be written to {path}: operation not permitted; "
        f"the older ones are intact: steps 2\n"
    )

    done = trainer(*SETTINGS, folder=folder)
    assert done.returncode == 2
    assert "run is not writable" in done.stderr

    subprocess.run(["chattr", "-R", "-i", folder], check=True)
    done = trainer(*SETTINGS, "--quiet", folder=folder)
    assert (done.returncode, done.stderr) == (0, "")
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").open()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
