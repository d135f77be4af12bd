"""`[plugins.jsonl]`: every reported step as one line of metrics.jsonl."""

from __future__ import annotations

import contextlib
import json
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import attrs

from trainer_core.errors import RunError, UserError
from trainer_core.files import parsed, replace
from trainer_core.plugin import hookimpl, plugin
from trainer_core.saved import last_saved

if TYPE_CHECKING:
    from trainer_core.program import Program
    from trainer_core.run import Run
    from trainer_core.types import Metrics

DAMAGED = "metrics.jsonl.damaged"  # lines of the run directory's metrics.jsonl that cannot be read
CUT = "metrics.jsonl.cut"  # lines past the step of a resumed run whose newer checkpoints are gone
logger = logging.getLogger("trainer_core")


@plugin
class JsonLines:
    """Each step stands there once: a resumed run first cuts what lies past its first step."""

    file: TextIO | None = attrs.field(init=False, default=None)

    @hookimpl
    def start(self, run: Run, program: Program, step: int) -> None:
        if not run.is_main:
            return
        path = run.directory / "metrics.jsonl"
        with self._failing_in_words(run):
            kept, past = _divided(path, step) if path.exists() else ([], {})
            _keep_what_is_lost(run, path, step, past)
            replace(path, "".join(f"{line}\n" for line in kept))
            self.file = path.open("a", encoding="utf-8")

    @hookimpl
    def report(self, run: Run, step: int, metrics: Metrics) -> None:
        if self.file is not None:
            with self._failing_in_words(run):
                self.file.write(json_line(step, metrics) + "\n")
                self.file.flush()

    @hookimpl
    def close(self, run: Run) -> None:
        if self.file is not None:
            with self._failing_in_words(run):
                self.file.close()

    @contextmanager
    def _failing_in_words(self, run: Run) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            file, self.file = self.file, None
            if file is not None:
                with contextlib.suppress(OSError):  # it tries once more to write what it holds
                    file.close()
            saved = last_saved(run.directory)
            # One may still be under way.
            newest = f", of step {saved} or later" if saved else ", if there is one"
            raise RunError(
                f"{run.directory / 'metrics.jsonl'} cannot be written: {error.strerror or error}; "
                f"once it can be, the same command goes on from the newest checkpoint{newest}"
            ) from error


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
    found: dict[int, dict[str, float]] = {}
    try:
        lines = list(_lines(path))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    for number, line, entry in lines:
        if entry is None:
            raise UserError(
                f"{path}:{number} is no line of metrics, an object with a step: {line[:60]!r}; "
                f"mend it, or leave it out"
            )
        step, numbers = entry
        known = found.setdefault(step, {})
        for name, value in numbers.items():
            if repr(known.setdefault(name, value)) != repr(value):
                raise UserError(
                    f"{path}:{number} says {name} = {value} of step {step}, and a line above "
                    f"{known[name]}; leave one of them out"
                )
    return found


def last_reported(path: Path, most: float = math.inf) -> tuple[int, dict[str, float]]:
    """Return the last step that a file reports, and its numbers; 0 and none where it has no line.

    Args:
        path: of the file, which need not be there.
        most: the last step that counts.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError:
        return 0, {}
    entries = (_entry(line) for line in reversed(lines))
    return next((entry for entry in entries if entry is not None and entry[0] <= most), (0, {}))


def _numbers(entry: Mapping[str, Any]) -> dict[str, float]:
    """The inverse of `json_metrics`."""
    written_out = {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf")}
    read = {name: written_out.get(value, value) for name, value in entry.items() if name != "step"}
    return {name: value for name, value in read.items() if isinstance(value, (int, float))}


def _entry(line: bytes) -> tuple[int, dict[str, float]] | None:
    """The step and the numbers of a line; None where it is damaged, or empty."""
    try:
        read = parsed(line)
        return int(read["step"]), _numbers(read)
    except (ValueError, KeyError, TypeError, OverflowError):
        return None


def _lines(path: Path) -> Iterator[tuple[int, str, tuple[int, dict[str, float]] | None]]:
    """Yield the number of each line, its text, and its step and numbers: None where it is damaged.

    A last line that is torn is left out.
    """
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        entry = _entry(line)
        if entry is None and number == len(lines):
            return
        yield number, line.decode("utf-8", "backslashreplace").strip(), entry


def _divided(path: Path, step: int) -> tuple[list[str], dict[int, str]]:
    """Return the lines up to a step, and those past it by number; damaged ones are set aside.

    The last line of a killed run may be torn; it lies past the step, or is made again.
    """
    kept: list[str] = []
    damaged: dict[int, str] = {}
    past: dict[int, str] = {}
    for number, line, entry in _lines(path):
        if entry is not None and entry[0] <= step:
            kept.append(line)
            damaged |= past  # what stands before it does not lie past the step
            past = {}
        elif entry is None and not past:
            damaged[number] = line
        else:
            past[number] = line
    if damaged:
        _set_aside(path, DAMAGED, damaged)
        logger.warning(
            "damaged in %s: line%s %s, now in %s; mend and put back what is worth it while the run "
            "is not under way",
            path,
            "s" * (len(damaged) > 1),
            ", ".join(map(str, damaged)),
            DAMAGED,
        )
    return kept, past


def _keep_what_is_lost(run: Run, path: Path, step: int, past: Mapping[int, str]) -> None:
    """Set aside the lines past the step, where a kill between two saves does not explain them."""
    if not past:
        return
    reached, _ = last_reported(path)
    saved = last_saved(run.directory)
    # Of a plugin that notes no saves: the second one waits for the first.
    if step < saved or (not saved and 0 < 2 * run.save_every < reached - step):
        _set_aside(path, CUT, past)
        logger.warning(
            "%s reports steps up to %d, and the newest checkpoint that can be used is of step %d, "
            "from which the run goes on: what lies past it is now in %s; where checkpoints are "
            "missing, stop the run and put them back",
            path,
            reached,
            step,
            CUT,
        )


def _set_aside(path: Path, name: str, lines: Mapping[int, str]) -> None:
    aside = path.with_name(name)
    before = aside.read_text(encoding="utf-8", errors="replace") if aside.is_file() else ""
    replace(aside, before + "".join(f"{line}\n" for line in lines.values()))
