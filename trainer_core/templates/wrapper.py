"""Keeps a moving average of the parameters (Polyak and Juditsky, 1992), and evaluates that too."""

from __future__ import annotations

from typing import Any

import attrs

from trainer_core import hookimpl, plugin, setting


@plugin
class Example:
    decay: float = setting(0.99, "how much of the average stays at each step")
    _losses: Any = attrs.field(init=False, default=None)  # no setting

    @hookimpl(wrapper=True)
    def step(self) -> Any:
        import optax

        from trainer_core import Step

        inner = yield  # the step that is wrapped

        def init(params: Any) -> Any:
            return inner.init(params) | {"average": params}

        def apply(state: Any, batch: Any) -> Any:
            state, metrics = inner.apply(state, batch)
            old = state.extra["average"]
            average = optax.incremental_update(state.params, old, 1 - self.decay)
            return attrs.evolve(state, extra=state.extra | {"average": average}), metrics

        return Step(apply, init)

    @hookimpl
    def start(self, program: Any) -> None:
        from trainer_core.defaults.evaluate import build_held_out_loss

        self._losses = build_held_out_loss(program)

    @hookimpl
    def evaluate(self, run: Any, state: Any) -> Any:
        averaged = attrs.evolve(state, params=state.extra["average"])
        losses = self._losses(averaged, run.settings.eval_batches)
        return {f"{name}_of_average": loss for name, loss in losses.items()}
