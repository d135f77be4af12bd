"""A run goes on with other devices, or other processes: it sees what it would have seen."""

from __future__ import annotations

from pathlib import Path

import pytest
from command import DECODER, trainer
from kills import TEXT
from processes import together
from seen import restored, rows_of

pytest.importorskip("trainer_checkpoint")

from trainer_checkpoint import stored

# Of 93 windows, 8 a batch: the first run stops within an epoch, the second in the next.
STEPS = (7, 14, 21)
SETTINGS = [
    "train",
    *DECODER,
    "run.directory=run",
    "run.eval_every=0",
    "data.path=text.txt",
    "data.batch_size=8",
    "schedule.use=constant",
    "schedule.warmup=0",
    "plugins.seen.use=seen:Seen",
]


def go_on(
    folder: Path, steps: int, mesh: str, devices: int, processes: int = 1, last: int = 0
) -> None:
    """Train up to `steps`, and see what was restored if a run made `last` steps before."""
    folder.mkdir(exist_ok=True)
    (folder / "text.txt").write_text(TEXT)
    settings = [*SETTINGS, f"run.steps={steps}", f"shard.mesh={mesh}"]
    if last:
        saved = stored.read(stored.look(folder / "run" / "checkpoints" / str(last)))
        parameters = {name for name in saved if name.startswith("params/")}
    if processes > 1:
        ended = together(processes, *settings, folder=folder, devices=devices)
        assert [each.code for each in ended] == [0] * processes, ended[0].err
    else:
        variables = {
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # as `together` does
        }
        done = trainer(*settings, folder=folder, **variables)
        assert done.returncode == 0, done.stderr
    assert not last or set(restored(folder, steps, saved)) == parameters


@pytest.mark.long
def test_on_8_then_4_then_1_devices_a_run_sees_what_the_unbroken_one_does(tmp_path: Path) -> None:
    moved, whole = tmp_path / "moved", tmp_path / "whole"
    go_on(moved, STEPS[0], "{data=1, fsdp=8}", devices=8)
    go_on(moved, STEPS[1], "{data=2, fsdp=2}", devices=4, last=STEPS[0])
    go_on(moved, STEPS[2], "{data=1, fsdp=1}", devices=1, last=STEPS[1])
    go_on(whole, STEPS[2], "{data=1, fsdp=8}", devices=8)
    parts = zip((0, *STEPS), STEPS, strict=False)
    found = sum((rows_of(moved, *part) for part in parts), start=rows_of(moved, 0, 0))
    assert found.total() == 8 * STEPS[2]
    assert found == rows_of(whole, 0, STEPS[2])


@pytest.mark.long
def test_in_2_then_4_processes_a_run_sees_what_the_unbroken_one_does(tmp_path: Path) -> None:
    moved, whole = tmp_path / "moved", tmp_path / "whole"
    mesh = "{data=2, fsdp=2}"
    go_on(moved, STEPS[0], mesh, devices=2, processes=2)
    go_on(moved, STEPS[1], mesh, devices=1, processes=4, last=STEPS[0])
    go_on(whole, STEPS[1], mesh, devices=4)
    found = rows_of(moved, 0, STEPS[0]) + rows_of(moved, STEPS[0], STEPS[1])
    assert found.total() == 8 * STEPS[1]
    assert found == rows_of(whole, 0, STEPS[1])
