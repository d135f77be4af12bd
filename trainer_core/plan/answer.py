"""All that `trainer plan` finds out: the plan, what would make it fit, and what else was tried."""

from __future__ import annotations

from collections.abc import Callable

import attrs

from trainer_core.plan.knobs import Knob, knobs
from trainer_core.plan.planning import Plan
from trainer_core.plan.search import Search, search
from trainer_core.plan.variants import Variants


@attrs.frozen
class Answer:
    """What was found.

    Attributes:
        plan: of the config as it is.
        knobs: what saves memory, where it does not fit.
        search: None where nobody asked for it.
    """

    plan: Plan
    knobs: list[Knob]
    search: Search | None


def answered(
    variants: Variants, seconds: float | None, told: Callable[[str], None] = lambda text: None
) -> Answer:
    """Plan a recipe.

    Args:
        variants: what is planned, and how else it may be.
        seconds: search for as long; None: do not.
        told: is told what is being done.
    """
    plan = variants.plan()
    found = None if seconds is None else search(plan, variants, seconds, told)
    return Answer(plan, knobs(plan, variants) if plan.fits is False else [], found)
