"""One step as one line of text, whose fields stand at the same place in every line."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from trainer_core.terminal import figures
from trainer_core.terminal.page import Page, Part

GAP = "  "
# Cumulative numbers that the other fields tell better.
_UNSHOWN = {"tokens", "seconds"}
_WORD = "dim"

# The metrics with a place of their own: the words before, the figure, the words after.
_PLACES: dict[str, tuple[str, Callable[[Any], str], str]] = {
    "loss": ("loss ", figures.loss, ""),
    "eval_loss": ("eval ", figures.loss, ""),
    "learning_rate": ("lr ", figures.scientific, ""),
    "grad_norm": ("grad ", figures.norm, ""),
    "tokens_per_second": ("", lambda value: f"{figures.short(value):>5}", " tokens/s"),
    "steps_per_second": ("", lambda value: f"{figures.short(value):>5}", " steps/s"),
    "skipped_steps": ("skipped ", str, ""),
    "loss_spikes": ("spikes ", str, ""),
}
_SHOWN_ONCE_THERE_ARE_ANY = {"skipped_steps", "loss_spikes"}


def step_line(
    step: int, steps: int, metrics: Mapping[str, Any], left: float | None = None
) -> list[Part]:
    """Return `step 312/700  loss 1.8342  lr 8.11e-04  grad 0.412  12.3k tokens/s  0:42 left`.

    Args:
        step: the number of steps made.
        steps: of the whole run.
        metrics: of this step; those whose names begin with `_` are not shown.
        left: seconds until the last step, where they are known.
    """
    (line,) = in_lines(_step_fields(step, steps, metrics, left), math.inf)
    return line


def print_step(
    page: Page, step: int, steps: int, metrics: Mapping[str, Any], left: float | None = None
) -> None:
    """Print it, as for `step_line`; where a terminal is narrower, on several lines."""
    columns = page.width if page.is_terminal else math.inf
    for line in in_lines(_step_fields(step, steps, metrics, left), columns):
        page.line(*line)


def in_lines(
    fields: Iterable[list[Part]], columns: float, indent: str = ""
) -> Iterator[list[Part]]:
    """Yield fields in as many lines as they need; none is cut in two.

    Args:
        fields: in their order.
        columns: in which a line shall fit.
        indent: of the first line; the others are indented by two columns.
    """
    line: list[Part] = []
    for field in fields:
        gap = GAP if line else indent
        if line and width(line) + len(gap) + width(field) > columns:
            yield line
            line, gap = [], GAP
        line += [gap, *field] if gap else field
    if line:
        yield line


def _step_fields(
    step: int, steps: int, metrics: Mapping[str, Any], left: float | None
) -> Iterator[list[Part]]:
    yield [("step ", _WORD), f"{step:>{len(f'{steps:,}')},}", (f"/{steps:,}", _WORD)]
    yield from fields(metrics)
    if left is not None:
        yield [f"{figures.duration(left):>4}", (" left", _WORD)]
    yield from extras(metrics)


def fields(metrics: Mapping[str, Any]) -> Iterator[list[Part]]:
    """Yield those metrics that have a place of their own, in its order."""
    for name, (before, show, after) in _PLACES.items():
        if name in metrics and (metrics[name] or name not in _SHOWN_ONCE_THERE_ARE_ANY):
            yield [(before, _WORD), show(metrics[name]), (after, _WORD)]


def extras(metrics: Mapping[str, Any]) -> Iterator[list[Part]]:
    """Yield all other metrics, by their names."""
    for name, value in metrics.items():
        if name not in _PLACES and name not in _UNSHOWN and not name.startswith("_"):
            yield [(f"{name} ", _WORD), figures.plain(value)]


def width(parts: list[Part]) -> int:
    return sum(len(part if isinstance(part, str) else part[0]) for part in parts)
