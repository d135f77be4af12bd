"""One step from a state that was written and read, and from the same state that was not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainer_core.testing.parts import Parts, read_leaves, write_leaves


def after(parts: Parts, steps: int) -> Any:
    """Return the state after some steps from the beginning."""
    state = parts.state()
    for step in range(steps):
        state, _ = parts.step(state, parts.batch(step))
    return state


def resumed_and_unbroken(parts: Parts, fresh: Parts, folder: Path) -> tuple[Any, Any]:
    """Return the states after three steps: of a run that stopped after two, and of one that
    did not.

    Args:
        parts: makes all three steps.
        fresh: the same run, begun anew: makes the third one from what was written.
        folder: where it is written.
    """
    state = after(parts, 2)
    write_leaves(folder / "state.npz", state)
    unbroken, _ = parts.step(state, parts.batch(2))
    again = read_leaves(folder / "state.npz", fresh.program.abstract_state)
    resumed, _ = fresh.step(again, fresh.batch(2))
    return resumed, unbroken
