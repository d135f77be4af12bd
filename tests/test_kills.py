"""`kill -9` at any moment costs nothing but time: a run ends as if it had never been stopped."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from kills import CASES, RUN, STEPS, Case, killed, killed_in, outcome, unbroken

KILLS = {  # at least
    "nnx, muon": 9,
    "linen, adamw, scanned": 9,
    "nnx, batch statistics": 6,
    "two processes": 6,
}


@pytest.mark.long
@pytest.mark.parametrize("name", CASES)
def test_a_run_that_is_killed_again_and_again_ends_as_the_unbroken_one(
    name: str, tmp_path: Path
) -> None:
    case, chance = CASES[name], random.Random(name)
    seconds = unbroken(case, tmp_path / "unbroken")
    expected = outcome(tmp_path / "unbroken")
    assert [line["step"] for line in expected[0]] == list(range(1, len(expected[0]) + 1))
    assert expected[1]["step"] == len(expected[0]) >= STEPS // 2
    buffers = [path for path in expected[1] if path.startswith("buffers/")]
    assert bool(buffers) == ("statistics" in name)
    kills = []
    for run in range(4 * KILLS[name]):  # some end before they are killed
        folder = tmp_path / str(run)
        kills += killed(case, folder, chance, seconds)
        assert outcome(folder) == expected
        if len(kills) >= KILLS[name]:
            break
    assert len(kills) >= KILLS[name]


PHASES = ("building", "restoring", "compiling", "initialising")
LATER = ("training", "evaluating", "saving", "restoring", "compiling", "closing")


@pytest.mark.long
def test_a_run_that_is_killed_in_each_phase_ends_as_the_unbroken_one(tmp_path: Path) -> None:
    """Where chance leads depends on how fast a machine is."""
    case = Case((*RUN, "run.steps=20"))
    unbroken(case, tmp_path / "unbroken")
    killed_run = tmp_path / "killed"
    for phase in (*PHASES, *LATER):
        killed_in(case, killed_run, phase)
    unbroken(case, killed_run)
    assert outcome(killed_run) == outcome(tmp_path / "unbroken")
