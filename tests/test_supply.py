"""A data source that is slower than the devices is said to be, with how much time it costs."""

from __future__ import annotations

import logging
import time
from types import SimpleNamespace
from typing import Any

import models
import pytest

from trainer_core import fit, hookimpl, plugin
from trainer_core.supply import Supply
from trainer_core.types import Data

pytestmark = pytest.mark.usefixtures("quick_compiles")


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
    assert "the data source takes 0.06" in warning
    assert int(warning.split(": ")[1].split("%")[0]) >= 50


@pytest.mark.parametrize("is_ready", [True, False])
def test_what_the_devices_do_meanwhile_is_no_waiting(
    is_ready: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    supply = Supply(Sleepy())
    running: Any = {"loss": SimpleNamespace(is_ready=lambda: is_ready)}
    for step in range(40):  # said once in a while, not every second
        supply.batch(step, running)
    assert len(warnings_of(caplog)) == is_ready
