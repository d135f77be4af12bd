"""The numbers of two runs, step by step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import attrs

from trainer_checkpoint.comparing.side import Side

# By the clock: they differ from run to run, and say nothing of what was trained.
_CLOCK = ("seconds", "per_second")


@attrs.frozen
class Apart:
    """Two numbers that should be one; `difference` is absolute, and infinite beside a NaN."""

    step: int
    metric: str
    a: float
    b: float

    @property
    def difference(self) -> float:
        return difference(self.a, self.b)


def common_steps(a: Side, b: Side) -> list[int]:
    return sorted(a.metrics.keys() & b.metrics.keys())


def first_apart(a: Side, b: Side, tolerance: float) -> Apart | None:
    """Return the first number, in the order of steps and of a step's line, that differs."""
    for step in common_steps(a, b):
        for each in _both(step, a.metrics[step], b.metrics[step]):
            if each.difference > tolerance:
                return each
    return None


def largest_difference(a: Side, b: Side) -> float:
    steps = common_steps(a, b)
    found = (each for step in steps for each in _both(step, a.metrics[step], b.metrics[step]))
    return max((each.difference for each in found), default=0.0)


def only_in(a: Side, b: Side) -> list[str]:
    """Return the metrics that one run reports and the other does not, at steps that both have."""
    steps = common_steps(a, b)
    names = [{name for step in steps for name in each.metrics[step]} for each in (a, b)]
    return sorted(name for name in names[0] - names[1] if not name.endswith(_CLOCK))


def difference(a: float, b: float) -> float:
    if a == b or (math.isnan(a) and math.isnan(b)):
        return 0.0
    apart = abs(a - b)
    return math.inf if math.isnan(apart) else apart


def chosen(steps: Sequence[int], first: int | None, most: int) -> list[int]:
    """Return the steps that are shown: evenly spread, and around the first difference all.

    Args:
        steps: ascending.
        first: the step that is shown always, with its neighbours.
        most: how many there is room for, roughly.
    """
    if len(steps) <= most:
        return list(steps)
    places = {round(place * (len(steps) - 1) / (most - 1)) for place in range(most)}
    if first is not None:
        at = steps.index(first)
        places |= {each for each in (at - 1, at, at + 1) if 0 <= each < len(steps)}
    return [steps[place] for place in sorted(places)]


def _both(step: int, a: Mapping[str, float], b: Mapping[str, float]) -> list[Apart]:
    names = [name for name in a if name in b and not name.endswith(_CLOCK)]
    return [Apart(step, name, a[name], b[name]) for name in names]
