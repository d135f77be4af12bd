"""Optimizers that look right, and what OptimizerSuite says of each: its test, and its words."""

from __future__ import annotations

from typing import Any

import attrs
import jax
import jax.numpy as jnp
import numpy as np
import optax

from trainer_core import Step, hookimpl, plugin, setting
from trainer_core.testing import OptimizerSuite

SAID = {
    "TestEager": ("test_building_it_allocates_nothing", "Make state in `init`"),
    "TestAscent": ("test_it_learns", "with the sign of a descent?"),
    "TestDeaf": ("test_the_first_update_has_the_first_learning_rate", "Hand the schedule itself"),
    "TestRandom": ("test_a_resumed_run_is_the_unbroken_one_to_the_bit", "nothing in its object"),
    "TestFlat": ("test_its_state_is_spread_over_devices", "made by jax.tree.map over them"),
    "TestWidening": ("test_its_state_keeps_its_dtypes", "cast it to the dtype in which"),
    "TestPartial": ("test_its_updates_fit_the_parameters", "no tree like that of the parameters"),
    "TestSilent": ("test_each_setting_says_what_it_means", 'setting(DEFAULT, "what it means")'),
    "TestUnshaped": ("test_its_state_is_that_of_its_shapes", "does not make what its shapes said"),
    "TestPerMicrobatch": ("test_microbatches_change_nothing_but_rounding", "with 4 microbatches"),
    "TestPerDevice": ("test_sharded_it_trains_the_same", "on 8 devices the parameters end"),
    "TestUntold": ("test_what_it_says_of_itself_can_be_recorded", "is no JSON value"),
    "TestSwitching": ("test_it_is_traced_once", "does `update` set something of JAX"),
    "TestBeginning": ("test_sharded_parameters_begin_the_same", "on a mesh these parameters begin"),
    "TestDecaying": ("test_a_step_that_is_not_finite_changes_nothing", "a skipped step changed"),
    "TestPercent": ("test_its_settings_survive_being_written_down", "are others when read back"),
    "TestUnwritable": ("test_its_settings_survive_being_written_down", "no TOML value"),
    "TestEqual": ("test_two_of_it_are_not_equal", "pluggy takes them for one"),
    "TestNowhere": ("test_a_recipe_can_name_it", "has no 'Nowhere'"),
    "TestUnnamed": ("test_it_learns", 'use = "NAME"'),
}


@plugin
class Eager:
    @hookimpl
    def build_optimizer(self, learning_rate: Any) -> Any:
        self.scale = jnp.ones((64,))
        return optax.sgd(learning_rate)


@plugin
class Ascent:
    @hookimpl
    def build_optimizer(self, learning_rate: Any) -> Any:
        return optax.scale_by_schedule(learning_rate)


@plugin
class Deaf:
    @hookimpl
    def build_optimizer(self) -> Any:
        return optax.sgd(0.01)


@plugin
class Random:
    @hookimpl
    def build_optimizer(self, learning_rate: Any) -> Any:
        scale = np.random.default_rng().uniform(0.5, 1.5)
        return optax.chain(optax.sgd(learning_rate), optax.scale(scale))


@plugin
class Flat:
    @hookimpl
    def build_optimizer(self, learning_rate: Any) -> Any:
        return optax.flatten(optax.adam(learning_rate))


@plugin
class Widening:
    @hookimpl
    def build_optimizer(self, learning_rate: Any) -> Any:
        def update(grads: Any, state: Any, params: Any = None) -> Any:
            state = jax.tree.map(lambda m, g: jnp.float32(0.9) * m + g, state, grads)
            return jax.tree.map(lambda m, p: (-0.01 * m).astype(p.dtype), state, params), state

        return optax.GradientTransformation(lambda p: jax.tree.map(jnp.zeros_like, p), update)


@plugin
class Partial:
    @hookimpl
    def build_optimizer(self, learning_rate: Any) -> Any:
        def update(grads: Any, state: Any, params: Any = None) -> Any:
            return grads["hidden"], state

        return optax.GradientTransformation(lambda params: (), update)


@plugin
class Silent:
    momentum: float = setting(0.9)

    @hookimpl
    def build_optimizer(self, learning_rate: Any) -> Any:
        return optax.sgd(learning_rate, self.momentum)


@plugin
class Unshaped:
    """Makes other state the second time."""

    made: int = attrs.field(init=False, default=0)

    @hookimpl
    def build_optimizer(self, learning_rate: Any) -> Any:
        sgd = optax.sgd(learning_rate)

        def init(params: Any) -> Any:
            self.made += 1
            return sgd.init(params), jnp.zeros((), "int32" if self.made > 2 else "float32")

        def update(grads: Any, state: Any, params: Any = None) -> Any:
            updates, inner = sgd.update(grads, state[0], params)
            return updates, (inner, state[1])

        return optax.GradientTransformation(init, update)


@plugin
class PerMicrobatch:
    @hookimpl
    def build_optimizer(self, run: Any, learning_rate: Any) -> Any:
        parts = run.config["accumulate"]["microbatches"]
        return optax.chain(optax.sgd(learning_rate), optax.scale(1 / parts))


@plugin
class PerDevice:
    @hookimpl
    def build_optimizer(self, run: Any, learning_rate: Any) -> Any:
        return optax.chain(optax.sgd(learning_rate), optax.scale(1 / run.mesh.size))


@plugin
class Untold:
    @hookimpl
    def build_optimizer(self, learning_rate: Any) -> Any:
        return optax.sgd(learning_rate)

    @hookimpl
    def describe_optimizer(self, model: Any) -> Any:
        infos = jax.tree.leaves(model.params)
        return {info.path: {"rule": "sgd", "decay": info.dtype} for info in infos}


@plugin
class Switching:
    """Chooses how JAX multiplies while it is traced: what was compiled is for another choice."""

    @hookimpl
    def build_optimizer(self, learning_rate: Any) -> Any:
        sgd = optax.sgd(learning_rate)

        def update(grads: Any, state: Any, params: Any = None) -> Any:
            precision = jax.config.jax_default_matmul_precision
            other = "high" if precision == "highest" else "highest"
            jax.config.update("jax_default_matmul_precision", other)
            return sgd.update(grads, state, params)

        return optax.GradientTransformation(sgd.init, update)


@plugin
class Beginning:
    """Lets matrices begin smaller, by what a device holds of them."""

    @hookimpl
    def build_optimizer(self, learning_rate: Any) -> Any:
        return optax.sgd(learning_rate)

    @hookimpl(wrapper=True)
    def build_state(self, run: Any) -> Any:
        model = yield

        def init(key: Any) -> Any:
            params, buffers = model.init(key)
            return jax.tree.map(lambda leaf: leaf / run.mesh.size, params), buffers

        return attrs.evolve(model, init=init)


@plugin
class Decaying:
    """Lets the parameters decay after the step, whether it was one or not."""

    @hookimpl
    def build_optimizer(self, learning_rate: Any) -> Any:
        return optax.sgd(learning_rate)

    @hookimpl(wrapper=True)
    def step(self) -> Any:
        inner = yield

        def apply(state: Any, batch: Any) -> Any:
            state, metrics = inner.apply(state, batch)
            params = jax.tree.map(lambda leaf: 0.99 * leaf, state.params)
            return attrs.evolve(state, params=params), metrics

        return Step(apply, inner.init)


@plugin
class Percent:
    momentum: float = attrs.field(
        default=90.0, converter=lambda given: given / 100, metadata={"help": "in percent"}
    )

    @hookimpl
    def build_optimizer(self, learning_rate: Any) -> Any:
        return optax.sgd(learning_rate, self.momentum)


@plugin
class Unwritable:
    kept: Any = setting(attrs.Factory(lambda: 1 + 2j), "where its momentum turns to")

    @hookimpl
    def build_optimizer(self, learning_rate: Any) -> Any:
        return optax.sgd(learning_rate)


@plugin
class Equal:
    @hookimpl
    def build_optimizer(self, learning_rate: Any) -> Any:
        return optax.sgd(learning_rate)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Equal)

    def __hash__(self) -> int:
        return id(self)


class TestEager(OptimizerSuite):
    use = "optimizers:Eager"


class TestAscent(OptimizerSuite):
    use = "optimizers:Ascent"


class TestDeaf(OptimizerSuite):
    use = "optimizers:Deaf"


class TestRandom(OptimizerSuite):
    use = "optimizers:Random"


class TestFlat(OptimizerSuite):
    use = "optimizers:Flat"


class TestWidening(OptimizerSuite):
    use = "optimizers:Widening"


class TestPartial(OptimizerSuite):
    use = "optimizers:Partial"


class TestSilent(OptimizerSuite):
    use = "optimizers:Silent"


class TestUnshaped(OptimizerSuite):
    use = "optimizers:Unshaped"


class TestPerMicrobatch(OptimizerSuite):
    use = "optimizers:PerMicrobatch"


class TestPerDevice(OptimizerSuite):
    use = "optimizers:PerDevice"


class TestUntold(OptimizerSuite):
    use = "optimizers:Untold"


class TestSwitching(OptimizerSuite):
    use = "optimizers:Switching"


class TestBeginning(OptimizerSuite):
    use = "optimizers:Beginning"


class TestDecaying(OptimizerSuite):
    use = "optimizers:Decaying"


class TestPercent(OptimizerSuite):
    use = "optimizers:Percent"


class TestUnwritable(OptimizerSuite):
    use = "optimizers:Unwritable"


class TestEqual(OptimizerSuite):
    use = "optimizers:Equal"


class TestNowhere(OptimizerSuite):
    use = "optimizers:Nowhere"


class TestUnnamed(OptimizerSuite):
    pass
