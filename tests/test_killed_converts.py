"""A conversion that is killed is made again by the same command, and no run begins in its place."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command import PERCEPTRON, environment

from trainer_core.cli import run as trainer

pytest.importorskip("trainer_checkpoint")

from trainer_checkpoint import stored

pytestmark = pytest.mark.aside

STOOD = 4
RUN = [*PERCEPTRON, "run.eval_every=0", "schedule.learning_rate=0.01"]
CONVERT = ["convert", "old", *RUN, "run.directory=new"]
TRAIN = ["train", *RUN, f"run.steps={STOOD + 2}", "--quiet"]
# Kills the process where it begins to call a function.
KILLED = """
import importlib, os, signal, sys
name, *arguments = sys.argv[1:]
module, _, path = name.partition(":")
place = importlib.import_module(module)
*parts, last = path.split(".")
for part in parts:
    place = getattr(place, part)
setattr(place, last, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
from trainer_core.cli import run
sys.exit(run(arguments))
"""
# Where it was killed, and whether its checkpoint stood.
MOMENTS = {
    "trainer_core.directory:versions": False,
    "trainer_checkpoint.writer:Writer.save": False,
    "trainer_checkpoint.contents:seal": False,
    "trainer_checkpoint.steps:settle": True,
    "trainer_checkpoint.writer:prune": True,
}


@pytest.fixture(autouse=True)
def _old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick_compiles: None) -> None:
    monkeypatch.chdir(tmp_path)
    assert trainer(["train", *RUN, "run.directory=old", f"run.steps={STOOD}", "--quiet"]) == 0


def killed(moment: str) -> None:
    command = [sys.executable, "-c", KILLED, moment, *CONVERT]
    ended = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr


def steps_of(directory: str) -> list[int]:
    lines = Path(directory, "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


@pytest.mark.parametrize(("moment", "whole"), MOMENTS.items())
def test_a_conversion_that_is_killed_is_made_again_and_no_run_begins_in_its_place(
    moment: str, whole: bool, capsys: Any
) -> None:
    killed(moment)
    left = {path.name for path in Path("new").rglob("*")}
    assert "config.toml" in left
    assert (str(STOOD) in left) == whole
    assert (f"{STOOD}.orbax-checkpoint-tmp" in left) == ("seal" in moment)

    shutil.copytree("new", "other")
    code = trainer([*TRAIN, "run.directory=other"])
    if whole:
        assert code == 0
        assert steps_of("other") == [STOOD + 1, STOOD + 2]
    else:
        assert code == 1
        said = capsys.readouterr().err
        assert "error: `trainer convert` ended in other before its checkpoint was written" in said
        assert not Path("other/metrics.jsonl").exists()

    assert trainer([*CONVERT, "--dry-run"]) == 0
    assert {path.name for path in Path("new").rglob("*")} == left
    assert trainer([*CONVERT, "run.seed=3"]) == 0  # another one may take its place
    found, wanted = (stored.read(stored.look(Path(path))) for path in ("new", "old"))
    for path in (each for each in wanted if each.startswith(("params/", "opt_state/", "step"))):
        assert found[path].tobytes() == wanted[path].tobytes(), path
    assert trainer([*CONVERT, "run.seed=3"]) == 2
    assert f"new has checkpoints already (steps {STOOD})" in capsys.readouterr().err
    assert trainer([*TRAIN, "run.directory=new", "run.seed=3"]) == 0
    assert steps_of("new") == [STOOD + 1, STOOD + 2]


def test_a_conversion_does_not_take_the_place_of_a_run_without_checkpoints(capsys: Any) -> None:
    nothing = ["run.directory=new", "run.steps=2", "checkpoint.use=none", "--quiet"]
    assert trainer(["train", *RUN, *nothing]) == 0
    before = {path: path.read_bytes() for path in Path("new").rglob("*") if path.name != ".lock"}
    Path("new/config.toml").write_text(
        Path("new/config.toml").read_text().replace('use = "none"', 'use = "orbax"')
    )
    before[Path("new/config.toml")] = Path("new/config.toml").read_bytes()
    assert trainer(CONVERT) == 2
    assert "new has a run already, without checkpoints; convert beg" in capsys.readouterr().err
    after = {path: path.read_bytes() for path in Path("new").rglob("*") if path.name != ".lock"}
    assert after == before
