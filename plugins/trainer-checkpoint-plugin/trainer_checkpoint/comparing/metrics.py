"""The numbers of two runs, step by step."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

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


def shared_numbers(a: Side, b: Side) -> dict[int, list[Apart]]:
    """Return what both report of a step under one name, by step; each in the order of its line."""
    found = {}
    for step in sorted(a.metrics.keys() & b.metrics.keys()):
        mine, its = a.metrics[step], b.metrics[step]
        names = [name for name in mine if name in its and is_compared(name)]
        if names:
            found[step] = [Apart(step, name, mine[name], its[name]) for name in names]
    return found


def only_in(a: Side, b: Side, steps: Collection[int]) -> list[str]:
    """Return the metrics that one run reports and the other does not, at these steps of both."""
    names = [{name for step in steps for name in each.metrics[step]} for each in (a, b)]
    return [name for name in sorted(names[0] - names[1]) if is_compared(name)]


def is_compared(metric: str) -> bool:
    return not metric.endswith(_CLOCK)


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
