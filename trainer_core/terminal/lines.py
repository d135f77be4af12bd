"""One step as one line of text, whose fields stand at the same place in every line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from trainer_core.terminal import figures
from trainer_core.terminal.page import Part

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
    parts: list[Part] = [("step ", _WORD), f"{step:>{len(f'{steps:,}')},}", (f"/{steps:,}", _WORD)]
    for field in fields(metrics):
        parts += [GAP, *field]
    if left is not None:
        parts += [GAP, f"{figures.duration(left):>4}", (" left", _WORD)]
    for field in extras(metrics):
        parts += [GAP, *field]
    return parts


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
