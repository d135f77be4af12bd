"""`[plugins.jsonl]`: every reported step as one line of metrics.jsonl."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, TextIO

import attrs

from trainer_core.plugin import hookimpl, plugin

if TYPE_CHECKING:
    from trainer_core.program import Program
    from trainer_core.run import Run
    from trainer_core.types import Metrics


@plugin
class JsonLines:
    """Each step stands there once: a resumed run first cuts what lies past its first step."""

    file: TextIO | None = attrs.field(init=False, default=None)

    @hookimpl
    def start(self, run: Run, program: Program, step: int) -> None:
        if not run.is_main:
            return
        path = run.directory / "metrics.jsonl"
        kept = _lines_up_to(path.read_text().splitlines(), step) if path.exists() else []
        # Written beside and renamed, so that being killed here loses no line.
        beside = path.with_suffix(".jsonl.new")
        beside.write_text("".join(f"{line}\n" for line in kept))
        os.replace(beside, path)
        self.file = path.open("a")

    @hookimpl
    def report(self, step: int, metrics: Metrics) -> None:
        if self.file is not None:
            self.file.write(json_line(step, metrics) + "\n")
            self.file.flush()

    @hookimpl
    def close(self) -> None:
        if self.file is not None:
            self.file.close()


def json_line(step: int, metrics: Metrics) -> str:
    """Return a step's metrics as one line of JSON."""
    return json.dumps({"step": step} | json_metrics(metrics))


def json_metrics(metrics: Metrics) -> dict[str, Any]:
    """Return metrics as JSON values, without those whose names begin with `_`."""
    # repr of a float reads back exactly; NaN and Infinity are no JSON, so they are strings.
    return {
        name: value if not isinstance(value, float) or abs(value) < float("inf") else str(value)
        for name, value in metrics.items()
        if not name.startswith("_")
    }


def _lines_up_to(lines: list[str], step: int) -> list[str]:
    """The last line of a killed run may be torn; it lies past the step, or is made again."""
    kept = []
    for line in lines:
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        if entry["step"] <= step:
            kept.append(line)
    return kept
