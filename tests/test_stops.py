"""Ctrl-C and SIGTERM to one of several processes, or to all, in each phase of a run."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from command import PERCEPTRON
from kills import outcome
from processes import Ended, ended, started, together

# Once in a run directory's life, in some processes, at one place.
SIGNALS = """
import os, signal
from pathlib import Path
from trainer_core import hookimpl, plugin, setting

@plugin
class Signals:
    @hookimpl
    def phase(self, run, name):
        at, number, *processes = os.environ.get("SIGNAL", "nowhere 0").split()
        once = Path(f"signalled-{run.process}")
        if name == at and str(run.process) in processes and not once.exists():
            once.touch()
            os.kill(os.getpid(), int(number))
"""
# All batches but the first, which is looked at beforehand, take long; files say which is taken.
SECONDS = 8.0
SLOW = """
import time
from pathlib import Path
from trainer_core import hookimpl, plugin, setting

@plugin
class Slow:
    seconds: float = setting()

    @hookimpl(wrapper=True)
    def build_data(self, run):
        source = yield
        batch = source.batch

        def slowly(step):
            if step > 0:
                Path(f"batch-{step}-{run.process}").touch()
                time.sleep(self.seconds)
            return batch(step)

        source.batch = slowly
        return source
"""
# As fast as these steps are, processes ask each other after 16 of them at the latest.
STEPS = 60
TRAIN = [
    "train",
    *PERCEPTRON,
    "model.dropout=0.1",
    "run.directory=run",
    f"run.steps={STEPS}",
    "run.eval_every=4",
    "checkpoint.every=3",
    "plugins.signals.use=signals:Signals",
]
CASES = {
    "Ctrl-C to process 0 while building": ("building", signal.SIGINT, 0),
    "SIGTERM to all while restoring": ("restoring", signal.SIGTERM, 0, 1),
    "SIGTERM to process 0 while initialising": ("initialising", signal.SIGTERM, 0),
    "SIGTERM to process 1 while compiling": ("compiling", signal.SIGTERM, 1),
    "SIGTERM to process 0 while evaluating": ("evaluating", signal.SIGTERM, 0),
    "Ctrl-C to process 1 while saving": ("saving", signal.SIGINT, 1),
    "SIGTERM to all while saving": ("saving", signal.SIGTERM, 0, 1),
    "SIGTERM to all while closing": ("closing", signal.SIGTERM, 0, 1),
}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    assert_ended_well(run(folder))
    return folder


def run(folder: Path, **variables: str) -> list[Ended]:
    (folder / "signals.py").write_text(SIGNALS)
    return together(2, *TRAIN, folder=folder, variables={0: variables, 1: variables})


def assert_ended_well(processes: list[Ended]) -> None:
    assert [(each.code, each.err) for each in processes] == [(0, ""), (0, "")]


@pytest.mark.long
@pytest.mark.parametrize("case", CASES)
def test_a_signal_in_any_phase_stops_all_and_the_next_run_goes_on_exactly(
    case: str, tmp_path: Path, unbroken: Path
) -> None:
    at, number, *processes = CASES[case]
    before = stopped_once(tmp_path) if at == "restoring" else 0
    assert_ended_well(run(tmp_path, SIGNAL=f"{at} {int(number)} {' '.join(map(str, processes))}"))
    signalled = {path.name for path in tmp_path.glob("signalled-*")}
    assert signalled == {f"signalled-{process}" for process in processes}
    lines, state = outcome(tmp_path)
    assert [line["step"] for line in lines] == list(range(1, state["step"] + 1))
    # Once they have met, one that left would leave the others in the middle of something: they
    # stop after a step, also where none was made yet.
    assert before + 1 <= state["step"] <= STEPS
    assert (state["step"] == STEPS) == (at == "closing")
    assert_ended_well(run(tmp_path))
    assert outcome(tmp_path) == outcome(unbroken)


def stopped_once(folder: Path) -> int:
    """Stop a run, so that there is something to restore, and return after which step."""
    assert_ended_well(run(folder, SIGNAL=f"evaluating {int(signal.SIGTERM)} 0"))
    (folder / "signalled-0").unlink()
    step: int = outcome(folder)[1]["step"]
    assert 1 <= step < STEPS
    return step


@pytest.mark.long
def test_where_steps_are_slow_all_stop_after_the_one_under_way(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    settings = [
        *TRAIN[:-1],
        "run.eval_every=0",
        f"plugins.slow={{use='slow:Slow', seconds={SECONDS}}}",
    ]
    with started(2, *settings, folder=tmp_path) as running:
        while not (tmp_path / "batch-3-1").exists():
            assert [each.poll() for each in running] == [None, None]
            time.sleep(0.01)
        running[1].send_signal(signal.SIGTERM)
        began = time.monotonic()
        codes = [each.code for each in ended(running, tmp_path)]
        seconds = time.monotonic() - began
    assert codes == [0, 0]
    lines, digests = outcome(tmp_path)
    assert digests["step"] == lines[-1]["step"] == len(lines) == 4
    assert seconds < 3 * SECONDS  # this step, the save, and the end of two processes


@pytest.mark.long
def test_ctrl_c_from_outside_to_all_is_one_stop(tmp_path: Path) -> None:
    (tmp_path / "signals.py").write_text(SIGNALS)
    with started(2, *TRAIN, "run.steps=1000000", folder=tmp_path) as running:
        while not (tmp_path / "run" / "metrics.jsonl").exists():
            assert [each.poll() for each in running] == [None, None]
            time.sleep(0.01)
        for process in running:
            process.send_signal(signal.SIGINT)
        assert_ended_well(ended(running, tmp_path))
    lines, digests = outcome(tmp_path)
    assert digests["step"] == lines[-1]["step"] == len(lines)
