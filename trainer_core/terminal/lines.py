"""One step as one line of text, whose fields stand at the same place in every line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from trainer_core.terminal import figures

GAP = "  "
# These have places of their own in a line, or are for machines: they can be computed from others.
_PLACED = {"loss", "eval_loss", "learning_rate", "grad_norm", "tokens_per_second", "skipped_steps"}
_UNSHOWN = {"tokens", "seconds"}


def step_line(step: int, steps: int, metrics: Mapping[str, Any], left: float | None = None) -> str:
    """Return `step 312/700  loss 1.8342  lr 8.11e-04  grad 0.412  12.3k tokens/s  0:42 left`.

    Args:
        step: the number of steps made.
        steps: of the whole run.
        metrics: of this step; those whose names begin with `_` are not shown.
        left: seconds until the last step, where they are known.
    """
    width = len(str(steps))
    fields = [f"step {step:>{width}}/{steps}", *_fields(metrics)]
    if left is not None:
        fields.append(f"{figures.duration(left)} left")
    return GAP.join([*fields, *extras(metrics)])


def extras(metrics: Mapping[str, Any]) -> list[str]:
    """Return the metrics that a line has no place for, as `name value`."""
    return [
        f"{name} {figures.plain(value)}"
        for name, value in metrics.items()
        if name not in _PLACED | _UNSHOWN and not name.startswith("_")
    ]


def _fields(metrics: Mapping[str, Any]) -> Iterator[str]:
    shown = {
        "loss": lambda value: f"loss {figures.loss(value)}",
        "eval_loss": lambda value: f"eval {figures.loss(value)}",
        "learning_rate": lambda value: f"lr {figures.scientific(value)}",
        "grad_norm": lambda value: f"grad {figures.norm(value)}",
        "tokens_per_second": lambda value: f"{figures.short(value):>5} tokens/s",
        "skipped_steps": lambda value: f"skipped {value}" if value else "",
    }
    for name, show in shown.items():
        if name in metrics and (text := show(metrics[name])):
            yield text
