"""What `trainer compare` finds: two runs, and where they part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs

from trainer_checkpoint.compare import Difference
from trainer_checkpoint.comparing.metrics import (
    Apart,
    common_steps,
    difference,
    first_apart,
    largest_difference,
)
from trainer_checkpoint.comparing.side import Side, differing_settings
from trainer_checkpoint.comparing.states import Compared, common_saved, compare_states
from trainer_core.defaults.jsonl import json_metrics
from trainer_core.errors import UserError

SHOWN = ("loss", "grad_norm")  # of each step


@attrs.frozen(kw_only=True)
class Report:
    """Two runs, and where they part.

    Attributes:
        steps: that both reported.
        first: the first number that differs by more than the tolerance.
        states: of the steps that both saved, up to the first that differ.
        largest: the largest difference of all that was compared, within the tolerance or not.
    """

    a: Side
    b: Side
    tolerance: float
    steps: tuple[int, ...]
    first: Apart | None
    states: tuple[Compared, ...]
    largest: float

    @property
    def differ(self) -> bool:
        return self.first is not None or any(each.apart for each in self.states)


def compare(a: Side, b: Side, tolerance: float) -> Report:
    """Compare two runs, at the steps that both have.

    Raises:
        UserError: there is no such step; or a checkpoint cannot be read.
    """
    steps = common_steps(a, b)
    if not steps and not common_saved(a, b):
        held = (f"{side.name} has {listed(sorted(side.metrics) or side.saved)}" for side in (a, b))
        raise UserError(f"there is no step that both have: {'; '.join(held)}")
    states = tuple(compare_states(a, b, tolerance))
    return Report(
        a=a,
        b=b,
        tolerance=tolerance,
        steps=tuple(steps),
        first=first_apart(a, b, tolerance),
        states=states,
        largest=max([largest_difference(a, b), *(each.largest for each in states)]),
    )


def listed(steps: Sequence[int]) -> str:
    """Return `no steps`, `step 4`, `steps 2, 4`, `steps 1 to 300`."""
    if len(steps) > 5:
        return f"steps {steps[0]} to {steps[-1]}"
    return f"step{'s' * (len(steps) != 1)} {', '.join(map(str, steps))}" if steps else "no steps"


def as_json(report: Report) -> dict[str, Any]:
    """Return it as JSON values; every common step, where a page shows a few."""
    a, b, first = report.a, report.b, report.first
    return {
        "equal": not report.differ,
        "tolerance": report.tolerance,
        "largest_difference": _number(report.largest),
        "runs": [{"run": each.name, "step": each.step, "of": each.planned} for each in (a, b)],
        "settings": differing_settings(a, b),
        "first_difference": None
        if first is None
        else {"step": first.step, "metric": first.metric, **_pair(first.a, first.b)},
        "steps": [
            {
                "step": step,
                **{
                    name: _pair(a.metrics[step][name], b.metrics[step][name])
                    for name in SHOWN
                    if name in a.metrics[step] and name in b.metrics[step]
                },
            }
            for step in report.steps
        ],
        "states": [
            {
                "step": each.step,
                "arrays": each.arrays,
                "differing": len(each.apart),
                "first": _path(each.apart[0]) if each.apart else None,
            }
            for each in report.states
        ],
    }


def _pair(a: float, b: float) -> dict[str, Any]:
    return json_metrics({"a": a, "b": b, "difference": difference(a, b)})


def _path(found: Difference) -> dict[str, Any]:
    if found.largest is None:
        return {"path": found.path, "difference": None, "note": found.note}
    return {"path": found.path, "difference": _number(found.largest)}


def _number(value: float) -> Any:
    return json_metrics({"it": value})["it"]
