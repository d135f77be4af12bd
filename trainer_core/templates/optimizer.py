"""Momentum of which only the sign counts (Bernstein et al., 2018, signSGD, section 3.2)."""

from __future__ import annotations

from typing import Any

from trainer_core import hookimpl, plugin, setting


@plugin
class Example:
    momentum: float = setting(0.9, "how much of the momentum stays at each step")
    weight_decay: float = setting(0.0, "of every parameter, times the learning rate")

    @hookimpl
    def build_optimizer(self, learning_rate: Any) -> Any:
        import optax  # here, so that a config is checked without it

        return optax.chain(
            optax.trace(self.momentum),
            optax.scale_by_sign(),
            optax.add_decayed_weights(self.weight_decay),
            optax.scale_by_learning_rate(learning_rate),
        )
