"""A data source that is slower than the devices is said to be, with how much time it costs."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

import models
import pytest

from trainer_core import fit, hookimpl, plugin
from trainer_core.supply import Supply
from trainer_core.types import Data

pytestmark = [pytest.mark.usefixtures("quick_compiles"), pytest.mark.aside]


class Sleepy(Data):
    """Takes a while for each batch."""

    def __init__(self, source: Data | None = None) -> None:
        self.source = source

    def batch(self, step: int) -> dict[str, Any]:
        time.sleep(0.06)
        return self.source.batch(step) if self.source is not None else {}


@plugin
class SlowExamples(models.Examples):
    @hookimpl
    def build_data(self, run: Any) -> Data:
        return Sleepy(super().build_data(run))


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "trainer_core"]


def test_a_run_that_waits_for_its_data_says_so_within_twenty_steps(
    recipe: Any, caplog: pytest.LogCaptureFixture
) -> None:
    slow = {"use": "test_supply:SlowExamples"}
    fit(recipe(run={"steps": 20}, data=slow, checkpoint={"use": "none"}))
    [warning] = warnings_of(caplog)
    assert warning.startswith("waiting for data: ")
    assert 0.06 <= float(warning.split("takes ")[1].split()[0]) < 1
    assert int(warning.split(": ")[1].split("%")[0]) >= 50


class Step:
    """A step that the devices need so long for, from when it is sent to them."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    def block_until_ready(self) -> None:
        time.sleep(max(0.0, self.end - time.monotonic()))


@pytest.mark.parametrize(
    # Of 60 ms for a batch: all of them, half of them, none; on a machine that does other things.
    ("step_takes", "least", "most"),
    [(0.0, 55, 100), (0.03, 21, 75), (0.3, None, None)],
)
def test_only_what_the_source_takes_longer_than_the_devices_is_waiting(
    step_takes: float,
    least: int | None,
    most: int | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    supply = Supply(Sleepy().batch)
    for index in range(50):
        supply.batch(index, {"loss": Step(step_takes)})
    said = [int(each.split(": ")[1].split("%")[0]) for each in warnings_of(caplog)]
    if least is None or most is None:
        assert said == []
    else:
        [found] = said  # once in a while, not every second
        assert least <= found <= most


def test_a_step_that_failed_on_the_devices_is_left_to_the_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Failed:
        def block_until_ready(self) -> None:
            raise RuntimeError("connection reset by peer")

    raised: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", raised.append)
    supply = Supply(Sleepy().batch)
    for step in range(2):
        supply.batch(step, {"loss": Failed()} if step else {})
    assert not raised
