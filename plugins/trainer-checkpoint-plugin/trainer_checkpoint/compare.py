"""`trainer checkpoint diff`: the largest difference of two checkpoints, by path."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from trainer_checkpoint import stored
from trainer_core.terminal.page import Page


@attrs.frozen
class Difference:
    """One path.

    Attributes:
        largest: absolute; None where the arrays cannot be subtracted.
        note: why they cannot: one is missing, or of another shape or dtype.
        has_same_bits: 0.0 and -0.0 do not differ, and have not the same.
    """

    path: str
    largest: float | None
    note: str = ""
    has_same_bits: bool = False


def differences(a: Path, b: Path) -> list[Difference]:
    """Compare every array of two checkpoints.

    Raises:
        UserError: one of them cannot be read.
    """
    left, right = (stored.read(stored.look(path)) for path in (a, b))
    found = []
    for path in sorted({*left, *right}):
        if path not in left or path not in right:
            found.append(Difference(path, None, f"only in {b if path in right else a}"))
        else:
            found.append(_difference(path, left[path], right[path]))
    return found


def differ(found: Sequence[Difference], tolerance: float) -> bool:
    """Whether any path differs by more than the tolerance; NaN is infinitely far from a number."""
    return any(each.largest is None or each.largest > tolerance for each in found)


def as_json(found: Sequence[Difference]) -> dict[str, Any]:
    """Return path to largest difference, or to why there is none; `"inf"` is no JSON number."""
    return {each.path: each.note if each.largest is None else _number(each) for each in found}


def _number(found: Difference) -> float | str:
    return str(found.largest) if found.largest == np.inf else float(found.largest or 0.0)


def print_out(found: Sequence[Difference], tolerance: float) -> None:
    """Print what differs, the largest first."""
    page = Page()
    apart = [each for each in found if differ([each], tolerance)]
    if not apart:
        page.line(f"equal: {len(found)} arrays, none differs by more than {tolerance:g}")
        return
    apart.sort(key=lambda each: -np.inf if each.largest is None else -each.largest)
    page.table(
        ("difference", "path"),
        [
            (f"{each.largest:.3e}", each.path)
            if each.largest is not None
            else ("-", f"{each.path}: {each.note}")
            for each in apart
        ],
    )
    page.line()
    page.line(f"{len(apart)} of {len(found)} arrays differ by more than {tolerance:g}")


def _difference(path: str, a: NDArray[Any], b: NDArray[Any]) -> Difference:
    if (a.shape, a.dtype) != (b.shape, b.dtype):
        return Difference(path, None, f"{a.dtype}{list(a.shape)} against {b.dtype}{list(b.shape)}")
    if a.tobytes() == b.tobytes():
        return Difference(path, 0.0, has_same_bits=True)
    first, second = a.astype(np.float64), b.astype(np.float64)
    same = (first == second) | (np.isnan(first) & np.isnan(second))
    apart = np.nan_to_num(np.where(same, 0.0, np.abs(first - second)), nan=np.inf)
    return Difference(path, float(np.max(apart, initial=0.0)))
