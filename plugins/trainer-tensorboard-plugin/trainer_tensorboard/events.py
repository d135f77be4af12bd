"""An event file, as TensorBoard reads it: records of events, each with its step and its time.

`tensorboardX.SummaryWriter` is not used: it writes in a thread, two minutes late; it makes a folder
of its own for hyperparameters; and two starts within a second share a file name.
"""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import RecordWriter

from trainer_core.recipe import flatten
from trainer_core.settings import shown

_PREFIX = "events.out.tfevents."


class EventFile:
    """A new event file in a folder; what is written is the operating system's at once.

    Args:
        folder: of the run; TensorBoard reads its files in the order of their names.
        first: steps that are behind the run: what other files have of later steps is not drawn.
    """

    def __init__(self, folder: Path, first: int) -> None:
        self.path = _new_path(folder)
        self._writer = RecordWriter(str(self.path))
        self._write(Event(file_version="brain.Event:2"))
        self._write(Event(step=first + 1, session_log=SessionLog(status=SessionLog.START)))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write the numbers of a step."""
        drawn = summary.Summary(
            value=[
                summary.Summary.Value(tag=tag, simple_value=each) for tag, each in values.items()
            ]
        )
        self._write(Event(step=step, summary=drawn))

    def config(self, step: int, table: Mapping[str, Any], metrics: list[str]) -> None:
        """Write a resolved config: as a text, and as hyperparameters of the run.

        Args:
            step: from which it holds.
            table: the config.
            metrics: the tags that are compared between runs.
        """
        flat = dict(flatten(table))
        # Four spaces: a block of code, in the Markdown that TensorBoard shows a text as.
        lines = "\n".join(f"    {key} = {shown(value)}" for key, value in flat.items())
        self._write(Event(step=step, summary=summary.text("config", lines)))
        plain = {
            key: value if isinstance(value, (bool, int, float, str)) else shown(value)
            for key, value in flat.items()
        }
        experiment, begun, self._ended = summary.hparams(plain, dict.fromkeys(metrics, 0.0))
        for each in (experiment, begun):
            self._write(Event(step=step, summary=each))

    def close(self, is_whole: bool) -> None:
        """Close it; `is_whole` where the run has not failed."""
        if is_whole:
            self._write(Event(summary=self._ended))
        self._writer.close()

    def _write(self, event: Any) -> None:
        event.wall_time = time.time()
        self._writer.write(event.SerializeToString())
        self._writer.flush()


def _new_path(folder: Path) -> Path:
    """A path after all earlier ones, also where the clock was set back since."""
    found = (re.match(rf"{re.escape(_PREFIX)}(\d+)\.", name) for name in os.listdir(folder))
    last = max((int(match[1]) for match in found if match), default=0)
    number = max(int(time.time()), last + 1)
    return folder / f"{_PREFIX}{number:010d}.{platform.node()}.trainer"
