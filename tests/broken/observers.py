"""Observers and wrappers that look right, and what PluginSuite says of each."""

from __future__ import annotations

from typing import Any

import attrs
import jax
import jax.numpy as jnp
import numpy as np

from trainer_core import Step, hookimpl, plugin
from trainer_core.testing import PluginSuite

SAID = {
    "TestMeddler": (
        "test_watching_changes_nothing_that_is_trained",
        "a run with it trains otherwise",
    ),
    "TestCareless": ("test_it_can_be_closed_before_it_began", "also where `start` never was"),
    "TestRandom": ("test_a_resumed_run_is_the_unbroken_one_to_the_bit", "in `state.extra`"),
    "TestFlat": ("test_its_state_is_spread_over_devices", "made by jax.tree.map over them"),
    "TestRefusing": ("test_a_run_with_it_ends_well", "no disk"),
}


@plugin
class Meddler:
    @hookimpl
    def start(self, program: Any) -> None:
        batch = program.data.batch
        program.data.batch = lambda step: batch(step + 1)


@plugin
class Careless:
    file: Any = attrs.field(init=False, default=None)

    @hookimpl
    def close(self) -> None:
        self.file.close()


@plugin
class Random:
    @hookimpl(wrapper=True)
    def step(self) -> Any:
        inner = yield
        scale = np.random.default_rng().uniform(0.9, 1.1)

        def apply(state: Any, batch: Any) -> Any:
            state, metrics = inner.apply(state, batch)
            return attrs.evolve(
                state, params=jax.tree.map(lambda leaf: scale * leaf, state.params)
            ), metrics

        return apply


@plugin
class Flat:
    """Keeps all parameters in one long vector, which no device can share with another."""

    @hookimpl(wrapper=True)
    def step(self) -> Any:
        inner = yield

        def flat(params: Any) -> Any:
            return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(params)])

        def apply(state: Any, batch: Any) -> Any:
            state, metrics = inner.apply(state, batch)
            return attrs.evolve(state, extra=state.extra | {"flat": flat(state.params)}), metrics

        return Step(apply, lambda params: inner.init(params) | {"flat": flat(params)})


@plugin
class Refusing:
    @hookimpl
    def report(self) -> None:
        raise OSError("no disk")


class TestMeddler(PluginSuite):
    use = "observers:Meddler"


class TestCareless(PluginSuite):
    use = "observers:Careless"


class TestRandom(PluginSuite):
    use = "observers:Random"


class TestFlat(PluginSuite):
    use = "observers:Flat"


class TestRefusing(PluginSuite):
    use = "observers:Refusing"
