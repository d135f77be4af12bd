"""A step on many devices exchanges and computes nothing that one written by hand does without."""

from __future__ import annotations

import by_hand
import jax
import pytest

from trainer_core.plan.cost import cost_of

pytest.importorskip("trainer_nnx")

pytestmark = [pytest.mark.long, pytest.mark.eight_devices]


@pytest.mark.parametrize("mesh", ["{fsdp=8}", "{fsdp=4,tensor=2}", "{data=2,fsdp=2,tensor=2}"])
def test_no_collective_is_added_to_those_of_a_step_by_hand(mesh: str) -> None:
    program = by_hand.program_on(mesh)
    hand = by_hand.ByHand(program)
    state = jax.eval_shape(hand.initial, program.abstract_state.params)
    compiled = hand.jitted.lower(state, program.abstract_batch).compile()
    theirs = cost_of(compiled.as_text())
    ours = cost_of(program.compile_step().as_text())  # type: ignore[attr-defined]
    assert theirs.exchanges
    assert set(ours.by_kind) <= set(theirs.by_kind)
    for kind, sums in ours.by_kind.items():
        assert sums.count <= theirs.by_kind[kind].count, kind
        assert sums.bytes <= theirs.by_kind[kind].bytes, kind
    assert ours.flops == theirs.flops
