"""The saved states of two runs, path by path."""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from trainer_checkpoint.compare import Difference, differ, differences
from trainer_checkpoint.comparing.side import Side

_PARTS = ("params", "opt_state", "buffers")  # the others come after them


@attrs.frozen
class Compared:
    """The states of one step.

    Attributes:
        arrays: how many there are, in either.
        apart: those that differ by more than the tolerance, in the order of the state.
        largest: the largest difference of all, within the tolerance or not.
        has_same_bits: all of them have.
    """

    step: int
    arrays: int
    apart: tuple[Difference, ...]
    largest: float
    has_same_bits: bool


def compare_states(a: Side, b: Side, tolerance: float) -> Iterator[Compared]:
    """Yield the steps that both saved, up to the first whose states differ.

    Raises:
        UserError: a checkpoint cannot be read.
    """
    for step in common_saved(a, b):
        folders = (each.directory / "checkpoints" / str(step) for each in (a, b))
        found = sorted(differences(*folders), key=_place)
        apart = tuple(each for each in found if differ([each], tolerance))
        largest = max((each.largest or 0.0 for each in found), default=0.0)
        same = all(each.has_same_bits for each in found)
        yield Compared(step, len(found), apart, largest, same)
        if apart:
            return


def common_saved(a: Side, b: Side) -> list[int]:
    return sorted({*a.saved} & {*b.saved})


def _place(found: Difference) -> tuple[int, list[tuple[int, str]]]:
    part, *_ = keys = found.path.split("/")
    order = _PARTS.index(part) if part in _PARTS else len(_PARTS)
    # The layers and the links of a chain are counted: 10 comes after 9.
    return order, [(int(key), "") if key.isdecimal() else (-1, key) for key in keys]
