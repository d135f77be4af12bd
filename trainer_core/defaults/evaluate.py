"""The core's answer to `evaluate`: the loss on data that training never sees."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import attrs

from trainer_core.plugin import hookimpl, plugin

if TYPE_CHECKING:
    from trainer_core.program import Program
    from trainer_core.run import Run
    from trainer_core.types import Metrics, TrainState


@plugin
class HeldOutLoss:
    """`eval_loss` over `[run] eval_batches` held-out batches."""

    losses: Callable[[TrainState, int], Metrics] | None = attrs.field(init=False, default=None)

    @hookimpl
    def start(self, program: Program) -> None:
        self.losses = build_held_out_loss(program)

    @hookimpl
    def evaluate(self, run: Run, state: TrainState) -> Metrics | None:
        assert self.losses is not None
        return self.losses(state, run.settings.eval_batches) or None


def build_held_out_loss(program: Program) -> Callable[[TrainState, int], Metrics]:
    """Return `losses(state, batches)`: `eval_loss`, and `eval_loss/TERM` where there are several.

    Sums and weights are added up over all batches and divided once, so that the figure does not
    depend on how the examples fall into batches. It takes as many batches as there are, if that is
    fewer, and returns nothing of none. It is compiled at the first call.
    """
    import jax

    from trainer_core.loss import build_loss, term_losses
    from trainer_core.mesh import must_run_in_turn

    evaluate = build_loss(program.model, train=False)

    def sums(params: Any, buffers: Any, key: Any, batch: Any) -> Any:
        return evaluate(params, buffers, batch, key, None)[1][0]

    placed = program.shardings
    compiled = program.run.watched(
        jax.jit(
            sums,
            in_shardings=(
                placed.state.params,
                placed.state.buffers,
                placed.state.key,
                placed.batch,
            ),
            out_shardings=placed.replicated,
        )
    )

    divide = jax.jit(functools.partial(term_losses, model=program.model))  # not op by op

    def losses(state: TrainState, batches: int) -> Metrics:
        # Devices work while the next batch is prepared; float64 on the host for the total.
        parts: list[Any] = []
        batches = min(batches, program.data.held_out_batches)
        in_turn = must_run_in_turn(program.run.mesh.devices.ravel().tolist())
        for index in range(batches):
            batch = program.place(program.held_out(index))
            if parts and in_turn:
                jax.block_until_ready(parts[-1])
            parts.append(compiled(state.params, state.buffers, state.key, batch))
        if not parts:
            return {}
        totals = jax.tree.map(lambda *each: sum(map(float, each)), *jax.device_get(parts))
        found = jax.device_get(divide(totals))
        return {f"eval_{name}": float(value) for name, value in found.items()}

    return losses
