"""The polynomials of a Newton-Schulz iteration: presets, and one's own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any, TypeAlias

import attrs

Triple: TypeAlias = tuple[float, float, float]

# Jordan et al., https://kellerjordan.github.io/posts/muon, 2024: steepest at 0, not converging;
# singular values end in 0.7 to 1.2.
_STANDARD: Triple = (3.4445, -4.7750, 2.0315)
# Cesista et al., https://leloykun.github.io/ponder/muon-opt-coeffs, 2025: one for each of 5 steps.
_QUINTIC: tuple[Triple, ...] = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)
# Amsel et al., "The Polar Express", arXiv:2505.16932, 2025: minimax optimal for 5 steps, made with
# a cushion of 2 and a safety factor of 0.02, by which X is divided besides.
_POLAR_EXPRESS: tuple[Triple, ...] = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
# DeepSeek-V4, technical report, 2026: 8 steep steps, then 2 that converge to 1.
_DEEPSEEK_V4: tuple[Triple, ...] = (_STANDARD,) * 8 + ((2.0, -1.5, 0.5),) * 2

PRESETS = ("standard", "quintic", "polar_express", "deepseek_v4")
_FIXED = {
    "quintic": _QUINTIC,
    "polar_express": _POLAR_EXPRESS,
    "deepseek_v4": _DEEPSEEK_V4,
}
_DEFAULT_STEPS = 5


@attrs.frozen
class Coefficients:
    """`X <- a X + b (X Xᵀ) X + c (X Xᵀ)² X`, once for each (a, b, c).

    Attributes:
        steps: (a, b, c) of each step.
        safety: X is divided by its Frobenius norm times this before the first step.
    """

    steps: tuple[Triple, ...]
    safety: float = 1.0


def coefficients(given: str | Sequence[Any], steps: int | None = None) -> Coefficients:
    """Return the coefficients of each step.

    Args:
        given: the name of a preset; one triple (a, b, c), repeated; or a triple for each step.
        steps: how many, where that is free; 5 if not given.

    Raises:
        ValueError: an unknown preset, no triples, or a number of steps that does not fit.
    """
    if steps is not None and steps < 1:
        raise ValueError(f"{steps} steps are none; give 1 or more")
    repeated = _DEFAULT_STEPS if steps is None else steps
    if isinstance(given, str):
        if given == "standard":
            return Coefficients((_STANDARD,) * repeated)
        if given not in _FIXED:
            raise ValueError(f"there is no preset {given!r}; there is: {', '.join(PRESETS)}")
        fixed = _FIXED[given]
        _check_count(given, fixed, steps)
        return Coefficients(fixed, safety=1.02 if given == "polar_express" else 1.0)
    if len(given) == 3 and all(isinstance(each, Real) for each in given):
        return Coefficients((_triple(given),) * repeated)
    own = tuple(_triple(each) for each in given)
    if not own:
        raise ValueError("give a triple (a, b, c), or one for each step")
    _check_count("the list of triples", own, steps)
    return Coefficients(own)


def _triple(given: Any) -> Triple:
    try:
        a, b, c = map(float, given)
        if not all(map(math.isfinite, (a, b, c))):
            raise ValueError
    except (TypeError, ValueError):
        raise ValueError(
            f"{given!r} is no triple of finite numbers (a, b, c); give one triple, or a list of "
            f"them, one for each step"
        ) from None
    return (a, b, c)


def _check_count(what: str, fixed: Sequence[Triple], steps: int | None) -> None:
    if steps is not None and steps != len(fixed):
        raise ValueError(
            f"{what} has coefficients for {len(fixed)} steps, not {steps}; leave steps away"
        )
