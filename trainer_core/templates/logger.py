"""Writes the numbers of each step to a CSV file in the run directory."""

from __future__ import annotations

import csv
from typing import Any

import attrs

from trainer_core import hookimpl, plugin, setting


@plugin
class Example:
    file: str = setting("metrics.csv", "its name in the run directory", may_change=True)
    _open: Any = attrs.field(init=False, default=None)  # no setting

    @hookimpl
    def start(self, run: Any, step: int) -> None:
        if not run.is_main:  # of several processes, one writes
            return
        path = run.directory / self.file
        rows = path.read_text().splitlines(keepends=True)[1:] if path.exists() else []
        # A run that was killed may have left a part of a row, and writes those after its
        # checkpoint once more.
        whole = [row for row in rows if row.endswith("\n")]
        kept = [row for row in whole if int(row.partition(",")[0]) <= step]
        path.write_text("".join(["step,name,value\n", *kept]))
        self._open = path.open("a", newline="")

    @hookimpl
    def report(self, step: int, metrics: Any) -> None:
        if self._open is not None:
            named = [(name, value) for name, value in metrics.items() if name[0] != "_"]
            csv.writer(self._open, lineterminator="\n").writerows([step, *each] for each in named)
            self._open.flush()  # so that a kill loses none

    @hookimpl
    def close(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None
