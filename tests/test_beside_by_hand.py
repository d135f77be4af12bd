"""A step on many devices exchanges and computes nothing that one written by hand does without."""

from __future__ import annotations

from typing import Any

import by_hand
import jax
import pytest

from trainer_core.plan.cost import cost_of

pytest.importorskip("trainer_nnx")

pytestmark = [pytest.mark.long, pytest.mark.eight_devices]


MESHES = ["{fsdp=8}", "{fsdp=4,tensor=2}", "{data=2,fsdp=2,tensor=2}", "{data=8}"]


@pytest.mark.parametrize("mesh", MESHES)
def test_nothing_is_added_to_a_step_by_hand(mesh: str) -> None:
    program = by_hand.program_on(mesh)
    hand = by_hand.ByHand(program)
    state = jax.eval_shape(hand.initial, program.abstract_state.params)
    by_hand_step = hand.jitted.lower(state, program.abstract_batch).compile()
    step: Any = program.compile_step()
    theirs, ours = cost_of(by_hand_step.as_text()), cost_of(step.as_text())
    assert theirs.exchanges
    assert set(ours.by_kind) <= set(theirs.by_kind)
    for kind, sums in ours.by_kind.items():
        assert sums.count <= theirs.by_kind[kind].count, kind
        assert sums.bytes <= theirs.by_kind[kind].bytes, kind
    assert ours.flops == theirs.flops
    # By XLA's own count nothing of the size of an array is read, written or kept beside what is
    # by hand, though only ours looks for what is not finite; 0.5% is room for its counters.
    for counted in ("flops", "bytes accessed"):
        assert step.cost_analysis()[counted] < 1.005 * by_hand_step.cost_analysis()[counted]
    kept, kept_by_hand = (each.memory_analysis() for each in (step, by_hand_step))
    assert kept.temp_size_in_bytes < 1.005 * kept_by_hand.temp_size_in_bytes
