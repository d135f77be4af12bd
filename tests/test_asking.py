"""A data source that does not answer is named while the run waits for it."""

from __future__ import annotations

import logging
import re
import threading
import time
from pathlib import Path
from typing import Any, ClassVar, cast

import models
import pytest
from command import PERCEPTRON, running

from trainer_core import asking, fit, hookimpl, plugin
from trainer_core.types import Data

pytestmark = pytest.mark.usefixtures("quick_compiles")

# The third time that it is asked for something, it stands still.
STILL = """
import time
import models
from trainer_core import hookimpl, plugin, setting

@plugin
class Still(models.Examples):
    at: str = setting("batch")

    @hookimpl
    def build_data(self, run):
        data = super().build_data(run)
        give = getattr(data, self.at)
        asked = []

        def stand_still(index):
            asked.append(index)
            if len(asked) == 3:
                time.sleep(1000)
            return give(index)

        setattr(data, self.at, stand_still)
        return data
"""


class Late(Data):
    """Gives its third batch once it was said twice that it does not come."""

    said: ClassVar[list[Any]] = []

    def __init__(self, source: Data) -> None:
        self.source = source

    def batch(self, step: int) -> dict[str, Any]:
        deadline = time.monotonic() + 60
        while step == 2 and len(self.said) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        return self.source.batch(step)


@plugin
class LateExamples(models.Examples):
    @hookimpl
    def build_data(self, run: Any) -> Data:
        return Late(super().build_data(run))


def test_it_is_said_at_growing_intervals_and_no_more_once_it_answers(
    recipe: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "LOOK", 0.02)
    # The recipe imports this file by its name; for pytest it has another.
    monkeypatch.setattr("test_asking.Late.said", caplog.records)
    data = {"use": "test_asking:LateExamples"}
    fit(recipe(run={"steps": 6}, data=data, checkpoint={"use": "none"}))
    said = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    # After 10 looks and 20; it comes before 40, but on a machine that is busy just then.
    assert 2 <= len(said) <= 3, said
    for text in said:
        assert re.match(
            r"waiting for data: \[data\] use = test_asking:LateExamples has not given the batch "
            r"after step 2 for \d s; where it stands: .*run/stacks-0.txt$",
            text,
        ), text


def looking() -> set[threading.Thread]:
    return {each for each in threading.enumerate() if each.name == "asking"}


def test_a_thread_looks_on_only_while_something_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(asking, "LOOK", 0.02)
    before, found = looking(), list[set[threading.Thread]]()
    asked: Any = asking.Asking(cast(Any, None))
    assert looking() == before

    def give(index: int) -> int:
        time.sleep(0.1)  # some looks
        found.append(looking() - before)
        return index

    for number in range(3):
        assert asked(give, "number {}", number) == number
        [thread] = found[-1]
        thread.join(60)
        assert not thread.is_alive()


def test_a_question_that_comes_just_as_a_thread_ends_is_looked_on_too() -> None:
    """It comes when the thread has seen that there is none, and must find that nobody looks."""
    found = []

    class Interrupted(asking.Asking):
        @property
        def _call(self) -> Any:
            found.append(self._is_watched)  # what a question asks for as it begins
            return None

        @_call.setter
        def _call(self, value: Any) -> None:
            pass

    asked: Any = Interrupted(cast(Any, None))
    asked._is_watched = True
    assert asked.leave()
    assert found == [False]


def test_the_thread_that_looks_on_ends_with_its_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a question is not answered any more: its thread holds nothing that belongs to it."""
    monkeypatch.setattr(asking, "LOOK", 0.02)
    before = looking()
    asked: Any = asking.Asking(cast(Any, None))
    asked._call = ("left", 0)
    asked._watch()
    [thread] = looking() - before
    time.sleep(0.1)  # some looks
    assert thread.is_alive()
    del asked
    thread.join(60)
    assert not thread.is_alive()


@pytest.mark.long
@pytest.mark.parametrize(
    ("at", "what"), [("batch", "the batch after step 1"), ("held_out", "held-out batch 0")]
)
def test_a_run_whose_data_never_comes_says_what_it_waits_for_and_where(
    at: str, what: str, tmp_path: Path
) -> None:
    (tmp_path / "still.py").write_text(STILL)
    train = ["train", "--quiet", *PERCEPTRON, "run.directory=run", "run.steps=9"]
    settings = ["data.use=still:Still", f"data.at={at}", "run.eval_every=2", "run.eval_batches=4"]
    with running(*train, *settings, folder=tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == (
            f"warning: waiting for data: [data] use = still:Still has not given {what} for 10 s; "
            "where it stands: run/stacks-0.txt\n"
        )
    assert "still.py" in (tmp_path / "run" / "stacks-0.txt").read_text()
