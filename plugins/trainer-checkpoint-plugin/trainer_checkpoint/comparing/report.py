"""What `trainer compare` finds: two runs, and where they part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs

from trainer_checkpoint.compare import Difference
from trainer_checkpoint.comparing.metrics import (
    Apart,
    difference,
    is_compared,
    shared_numbers,
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
        names: of the numbers that are compared.
        first: the first number that differs by more than the tolerance.
        states: of the steps that both saved, up to the first that differ.
        largest: the largest difference of all that was compared, within the tolerance or not.
    """

    a: Side
    b: Side
    tolerance: float
    steps: tuple[int, ...]
    names: tuple[str, ...]
    first: Apart | None
    states: tuple[Compared, ...]
    largest: float

    @property
    def has_same_bits(self) -> bool:
        return not self.largest and all(each.has_same_bits for each in self.states)

    @property
    def differ(self) -> bool:
        return self.first is not None or any(each.apart for each in self.states)


def compare(a: Side, b: Side, tolerance: float) -> Report:
    """Compare two runs, at the steps that both have.

    Raises:
        UserError: there is no such step; or a checkpoint cannot be read.
    """
    numbers = shared_numbers(a, b)
    if not numbers and not common_saved(a, b):
        held = "; ".join(f"{side.name} has {_held(side)}" for side in (a, b))
        raise UserError(f"there is no step of which both have the same number or a state: {held}")
    pairs = [each for step in numbers.values() for each in step]
    states = tuple(compare_states(a, b, tolerance))
    return Report(
        a=a,
        b=b,
        tolerance=tolerance,
        steps=tuple(numbers),
        names=tuple(dict.fromkeys(each.metric for each in pairs)),
        first=next((each for each in pairs if each.difference > tolerance), None),
        states=states,
        largest=max(
            [0.0, *(each.difference for each in pairs), *(each.largest for each in states)]
        ),
    )


def _held(side: Side) -> str:
    names = dict.fromkeys(name for each in side.metrics.values() for name in each)
    numbers = f" ({', '.join(filter(is_compared, names))})" if names else ""
    saved = f", and saved {listed(side.saved)}" if side.saved else ""
    return f"{listed(sorted(side.metrics))}{numbers}{saved}"


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
        "bit_for_bit": report.has_same_bits,
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
