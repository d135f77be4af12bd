"""Runs that are killed at moments drawn by chance, again and again, and what they come to."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
from command import DECODER
from processes import LIMIT, ended, started

from trainer_core.plugin import hookimpl, plugin

# 93 windows of 32 bytes: 8 a batch, so that a run sees them several times, and stops in between.
TEXT = "".join(f"{number * number % 7919:04} " for number in range(600))
STEPS = 80
# Saved and deleted all the time, so that many kills hit a save; dropout and microbatches, whose
# random numbers must go on; evaluations in between.
LOOP = [
    "run.directory=run",
    f"run.steps={STEPS}",
    "run.eval_every=7",
    "run.eval_batches=2",
    "data.path=text.txt",
    "data.length=32",
    "data.batch_size=8",
    "accumulate.microbatches=2",
    "checkpoint.every=4",
    "plugins.phases.use=kills:Phases",
]
RUN = ["train", *DECODER, *LOOP, "model.dropout=0.1", "model.kv_heads=2"]
_MISSING = re.compile(r"^error: (1 of 2 processes did not come|process 1 could not reach)", re.M)
MUON = ["optimizer.use=muon", "schedule.learning_rate=0.02"]


@attrs.frozen
class Case:
    """A run, and in how many processes."""

    arguments: tuple[str, ...]
    processes: int = 1


CASES = {
    "nnx, muon": Case((*RUN, *MUON)),
    "linen, adamw, scanned": Case((*RUN, "model.use=linen", "model.layers=2")),
    "nnx, batch statistics": Case(
        ("train", *LOOP, "model.use=nnx-module", "model.module=old_trainer:NormedInNNX")
    ),
    # Where one is killed, and no collective fails at once, the other waits for the timeout.
    "two processes": Case(
        (*RUN, f"run.steps={STEPS // 2}", "shard.mesh={data=1,fsdp=2}", "distributed.timeout=40"),
        processes=2,
    ),
}


@plugin
class Phases:
    """Leaves behind what the run is doing; kills it where it begins to do `DIE_IN`."""

    @hookimpl
    def phase(self, run: Any, name: str) -> None:
        Path(f"phase-{run.process}").write_text(name)
        if name == os.environ.get("DIE_IN"):
            os.kill(os.getpid(), signal.SIGKILL)


@attrs.frozen
class Kill:
    """One kill.

    Attributes:
        phase: in which process 0 was; "starting" before it announced any.
        left: what lay half done in the folder of checkpoints: "written", "deleted".
    """

    phase: str
    left: tuple[str, ...]


def unbroken(case: Case, folder: Path) -> float:
    """Run a case without a kill, and return its seconds."""
    began = time.monotonic()
    with _started(case, folder) as processes:
        codes = [each.code for each in ended(processes, folder)]
    assert codes == [0] * case.processes, (folder / "err-0").read_text()
    return time.monotonic() - began


def killed(case: Case, folder: Path, chance: random.Random, longest: float) -> Iterator[Kill]:
    """Start a run and kill it, until it comes to its end before it is killed.

    Args:
        case: the run.
        folder: where it runs.
        chance: draws the moments, and in a run of several processes which of them.
        longest: seconds after which it is killed at the latest.
    """
    while True:
        with _started(case, folder) as processes:
            deadline = time.monotonic() + chance.uniform(0, longest)
            while time.monotonic() < deadline and any(each.poll() is None for each in processes):
                time.sleep(0.001)
            alone = [process.poll() for process in processes]
            assert {*alone} <= {None, 0}, (alone, _said(folder, len(alone)))  # nothing befell them
            # All of them, or one: the others must then end by themselves, and not as if done.
            doomed = chance.choice([processes, *([each] for each in processes)])
            for process in doomed:
                process.send_signal(signal.SIGKILL)
            codes = [process.wait(timeout=LIMIT) for process in processes]
        if codes == [0] * len(codes):
            return
        place = folder / "phase-0"
        phase = place.read_text() if place.exists() else "starting"
        yield Kill(phase or "between two", _half_done(folder))
        # A process that is closing may end well beside one that is killed; JAX aborts one where
        # process 0 is. None may say that its config is wrong, but where one is missing at first.
        for process, code, said in zip(processes, codes, _said(folder, len(codes)), strict=True):
            own = [0, -signal.SIGKILL] if process in doomed else [0, 1, 2]
            own += [-signal.SIGABRT] if processes[0] in doomed and process not in doomed else []
            assert code in own, (codes, said)
            assert code != 2 or _MISSING.search(said), (codes, said)


def killed_in(case: Case, folder: Path, phase: str) -> None:
    """Start a run of one process, and kill it where it enters a phase."""
    with _started(case, folder, DIE_IN=phase) as (process,):
        assert process.wait(timeout=LIMIT) == -signal.SIGKILL


def outcome(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the numbers of a run, but no clock's, and the digests of its last state."""
    clock = ("seconds", "tokens_per_second")
    lines = [
        {name: value for name, value in json.loads(line).items() if name not in clock}
        for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    last = max(int(path.name) for path in (folder / "run" / "checkpoints").glob("*[0-9]"))
    meta = json.loads(
        (folder / "run" / "checkpoints" / str(last) / "meta" / "metadata").read_text()
    )
    return lines, {path: leaf["digest"] for path, leaf in meta["leaves"].items()} | {"step": last}


def again(folder: Path) -> None:
    """Remove what a run wrote."""
    shutil.rmtree(folder / "run", ignore_errors=True)
    for path in folder.glob("phase-*"):
        path.unlink()


def _started(case: Case, folder: Path, **variables: str) -> Any:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "text.txt").write_text(TEXT)
    for path in folder.glob("phase-*"):
        path.unlink()
    each = dict.fromkeys(range(case.processes), variables)
    return started(case.processes, *case.arguments, folder=folder, variables=each)


def _said(folder: Path, processes: int) -> list[str]:
    return [(folder / f"err-{index}").read_text() for index in range(processes)]


def _half_done(folder: Path) -> tuple[str, ...]:
    names = [path.name for path in (folder / "run" / "checkpoints").glob("*.*")]
    ends = {"orbax-checkpoint-tmp": "written", "deleting": "deleted"}
    return tuple(sorted({what for end, what in ends.items() for name in names if end in name}))
