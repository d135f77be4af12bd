"""`[plugins.jsonl]`: every reported step as one line of metrics.jsonl."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import attrs

from trainer_core.errors import UserError
from trainer_core.files import replace
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
        replace(path, "".join(f"{line}\n" for line in kept))
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


def read_metrics(path: Path) -> dict[int, dict[str, float]]:
    """Return the numbers that a run reported, by step and name; none where there is no file.

    A last line that is torn is left out: the run was killed, or is writing it.

    Raises:
        UserError: another line is not what `json_line` makes, or says otherwise of a number of the
            same step; or the file cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    found: dict[int, dict[str, float]] = {}
    lines = text.splitlines()
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            step, numbers = int(entry["step"]), _numbers(entry)
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines) and not text.endswith("\n"):
                continue  # torn
            raise UserError(
                f"{path}:{number} is no line of metrics, an object with a step: {line[:60]!r}"
            ) from error
        known = found.setdefault(step, {})
        for name, value in numbers.items():
            if repr(known.setdefault(name, value)) != repr(value):
                raise UserError(
                    f"{path}:{number} says {name} = {value} of step {step}, and a line above "
                    f"{known[name]}; leave one of them out"
                )
    return found


def _numbers(entry: Mapping[str, Any]) -> dict[str, float]:
    """The inverse of `json_metrics`."""
    written_out = {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf")}
    read = {name: written_out.get(value, value) for name, value in entry.items() if name != "step"}
    return {name: value for name, value in read.items() if isinstance(value, (int, float))}


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
