"""A run for programs: one JSON object a line, or nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainer_core.defaults.jsonl import json_line
from trainer_core.terminal.output import say

if TYPE_CHECKING:
    from trainer_core.program import Program
    from trainer_core.run import Run
    from trainer_core.types import Metrics


class QuietDisplay:
    """Shows nothing."""

    def phase(self, name: str) -> None:
        return

    def show(self, run: Run, program: Program) -> None:
        return

    def start(self, run: Run, step: int) -> None:
        return

    def report(self, step: int, metrics: Metrics) -> None:
        return

    def note(self, text: str) -> None:
        return

    def close(self) -> None:
        return


class JsonDisplay(QuietDisplay):
    """Each reported step as in metrics.jsonl."""

    def report(self, step: int, metrics: Metrics) -> None:
        say(json_line(step, metrics))
