"""A run that is killed and goes on is drawn in TensorBoard as if it had never been."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from command import PERCEPTRON, trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from trainer_core.cli import run

pytestmark = pytest.mark.usefixtures("quick_compiles")

KILLER = """
import os, signal, time
from trainer_core import hookimpl, plugin

@plugin
class Killer:
    at: int = 0

    @hookimpl(trylast=True)
    def report(self, run, step):
        if step == self.at:
            while not (run.directory / "checkpoints/4").is_dir():  # it is written meanwhile
                time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.long  # two processes; that files take each other back is tested in the plugin
def test_a_killed_run_that_goes_on_is_drawn_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "killer.py").write_text(KILLER)
    settings = [*PERCEPTRON, "run.steps=10", "run.eval_every=0", "plugins.tensorboard={}"]
    settings.append("checkpoint.every=4")
    killed = trainer(
        "train",
        *settings,
        "plugins.killer.use=killer:Killer",
        "plugins.killer.at=7",
        folder=tmp_path,
    )
    assert killed.returncode == -9, killed.stderr
    folder = tmp_path / "runs/default"
    assert [each.step for each in drawn(folder)] == [1, 2, 3, 4, 5, 6, 7]

    monkeypatch.chdir(tmp_path)
    assert run(["train", *settings]) == 0
    assert "resumed" in capsys.readouterr().out
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    expected = [
        (line["step"], struct.unpack("f", struct.pack("f", line["loss"]))[0]) for line in lines
    ]
    assert [(each.step, each.value) for each in drawn(folder)] == expected
    assert [step for step, _ in expected] == list(range(1, 11))
    assert len(list(folder.glob("events.out.tfevents.*"))) == 2


def drawn(folder: Path) -> list[Any]:
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    return found.Reload().Scalars("loss")
