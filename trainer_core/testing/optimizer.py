"""What every optimizer must hold to: shapes first, shards, one program, and exact resume."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from trainer_core.testing.parts import different_leaves, first_difference, host, kinds
from trainer_core.testing.resume import after, resumed_and_unbroken
from trainer_core.testing.sharded import apart, three_steps
from trainer_core.testing.suite import Suite


class OptimizerSuite(Suite):
    """The tests of an optimizer: subclass it, and name the optimizer.

    class TestLion(OptimizerSuite):
        use = "lion"

    Attributes:
        uses_schedule: whether it takes its learning rate from `[schedule]`.
        rounding: how far the order in which float32 numbers are added up may lead the
            parameters apart in three steps, as a part of the way that they go. Rounding is
            1e-7 of a gradient; an optimizer that divides by its size enlarges it.
        may_be_whole: whether it keeps arrays of 64 and more numbers that are not spread over
            devices as the parameters are (preconditioners, say).
    """

    slot = "optimizer"
    uses_schedule: ClassVar[bool] = True
    rounding: ClassVar[float] = 1e-3
    may_be_whole: ClassVar[bool] = False

    def test_building_it_allocates_nothing(self) -> None:
        gc.collect()
        before = {id(array) for array in jax.live_arrays()}
        parts = self.built_anew()
        made = [a for a in jax.live_arrays() if id(a) not in before and a.size >= 64]
        if made:
            self.fail(
                f"building it made arrays: {[f'{a.dtype}{list(a.shape)}' for a in made]}. Make "
                f"state in `init`, which runs under jit, straight into the shards"
            )
        del parts

    def test_its_state_is_that_of_its_shapes(self) -> None:
        program = self.parts().program
        made = kinds(self.parts().state().opt_state)
        said = kinds(program.abstract_state.opt_state)
        if made != said:
            self.fail(f"`init` does not make what its shapes said: {first_difference(made, said)}")

    def test_its_updates_fit_the_parameters(self) -> None:
        params, _, _, (updates, _) = self._abstract_update()
        structures: list[Any] = [jax.tree.structure(tree) for tree in (updates, params)]
        if structures[0] != structures[1]:
            self.fail("its updates are no tree like that of the parameters")
        wrong = [
            f"{path} {found} for {wanted}"
            for (path, found), wanted in zip(
                kinds(updates).items(), kinds(params).values(), strict=True
            )
            if found.partition("[")[2] != wanted.partition("[")[2]
        ]
        if wrong:
            self.fail(f"updates of another shape than their parameters: {'; '.join(wrong)}")

    def test_its_state_keeps_its_dtypes(self) -> None:
        for dtype in ("float32", "bfloat16"):
            _, before, _, (_, after) = self._abstract_update(dtype)
            kept, was = kinds(after), kinds(before)
            if kept != was:
                self.fail(
                    f"with {dtype} parameters its state goes in and comes out otherwise: "
                    f"{first_difference(kept, was)}; cast it to the dtype in which `init` made it"
                )

    def test_it_is_traced_once(self) -> None:
        parts = self.parts()
        traced = []

        def counted(state: Any, batch: Any) -> Any:
            traced.append(jax.tree.map(lambda leaf: str(leaf.aval), state.opt_state))
            return parts.program.step.apply(state, batch)

        step, state = jax.jit(counted), parts.state()
        for number in range(3):
            state, _ = step(state, parts.batch(number))
        if len(traced) > 1:
            if traced[0] != traced[1]:
                self.fail(f"its state changes between steps: {traced[0]}, then {traced[1]}")
            self.fail(
                f"three steps trace it {len(traced)} times, with a state of the same arrays: does "
                f"`update` set something of JAX's, or make what is static in its state anew?"
            )

    def test_the_first_update_has_the_first_learning_rate(self) -> None:
        if not self.uses_schedule:
            return
        first, second = self._updates(lambda count: jnp.where(count == 0, 0.0, 0.1))
        if first != 0:
            self.fail(
                "its first update is not zero where the schedule begins with 0. Hand the schedule "
                "itself to optax (`optax.adam(learning_rate)`), or call it with the number of "
                "updates made before; if it has none, say uses_schedule = False"
            )
        if second == 0:
            self.fail("its second update is zero, though the schedule has risen to 0.1 by then")

    def test_it_learns(self) -> None:
        parts = self.parts()
        state, batch, losses = parts.state(), parts.batch(0), []
        for _ in range(20):
            state, metrics = parts.step(state, batch)
            losses.append(float(metrics["loss"]))
        if not losses[-1] < losses[0]:
            self.fail(
                f"after 20 steps on one batch the loss is {losses[-1]:.4f}, and was "
                f"{losses[0]:.4f}: are its updates the ones to add, with the sign of a descent?"
            )

    def test_a_step_that_is_not_finite_changes_nothing(self) -> None:
        parts = self.parts(data={"nan_gradient": [1]})
        state, _ = parts.step(parts.state(), parts.batch(0))
        before = host((state.params, state.opt_state))
        state, _ = parts.step(state, parts.batch(1))
        changed = different_leaves((state.params, state.opt_state), before)
        if changed:
            self.fail(f"a skipped step changed {', '.join(changed)}")
        state, metrics = parts.step(state, parts.batch(2))
        if not np.isfinite(metrics["loss"]) or not different_leaves(state.params, before[0]):
            self.fail("it does not train on after a step that was skipped")

    def test_microbatches_change_nothing_but_rounding(self) -> None:
        whole, parted = self.parts(), self.parts(accumulate={"microbatches": 4})
        start = host(whole.state().params)
        ends = [after(parts, 3) for parts in (whole, parted)]
        distance = apart(host(ends[1].params), host(ends[0].params), start)
        if not distance <= self.rounding:
            self.fail(
                f"with 4 microbatches the parameters end {distance:.2g} times as far from those "
                f"without as they moved in three steps, more than this suite's rounding = "
                f"{self.rounding}: does `update` count on being called once a microbatch?"
            )

    def test_a_resumed_run_is_the_unbroken_one_to_the_bit(self, tmp_path: Path) -> None:
        resumed, unbroken = resumed_and_unbroken(self.parts(), self.built_anew(), tmp_path)
        if changed := different_leaves(resumed, unbroken):
            self.fail(
                f"a resumed run differs from the unbroken one in {', '.join(changed)}: all that it "
                f"remembers must be in its state, nothing in its object"
            )

    def test_sharded_parameters_begin_the_same(self) -> None:
        if different := self.sharded(three_steps)["different"]:
            self.fail(f"on a mesh these parameters begin otherwise: {', '.join(different)}")

    def test_its_state_is_spread_over_devices(self) -> None:
        whole = self.sharded(three_steps)["whole"]
        if whole and not self.may_be_whole:
            self.fail(
                f"every device holds all of {', '.join(whole)}. Keep state in trees like that of "
                f"the parameters, made by jax.tree.map over them; if it cannot be, say "
                f"may_be_whole = True"
            )

    def test_sharded_it_trains_the_same(self) -> None:
        distance = self.sharded(three_steps)["apart"]
        if not distance <= self.rounding:
            self.fail(
                f"on 8 devices the parameters end {distance:.2g} times as far from those on one as "
                f"they moved in three steps, more than this suite's rounding = {self.rounding}: "
                f"is anything computed from a part of an array, or kept outside of its state?"
            )

    def test_what_it_says_of_itself_can_be_recorded(self) -> None:
        try:
            json.dumps(self.parts().program.optimizer_record, allow_nan=False)
        except (TypeError, ValueError) as error:
            self.fail(f"`describe_optimizer` answers what is no JSON value: {error}")

    # ------------------------------------------------------------------

    def _abstract_update(self, dtype: str = "float32") -> Any:
        parts = self.parts(model={"dtype": dtype}) if dtype != "float32" else self.parts()
        params = _plain(parts.program.abstract_state.params)
        tx = parts.program.optimizer
        state = jax.eval_shape(tx.init, params)
        update = optax.with_extra_args_support(tx).update
        loss = jax.ShapeDtypeStruct((), jnp.float32)

        def updated(grads: Any, state: Any, params: Any, loss: Any) -> Any:
            return update(grads, state, params, value=loss, grad=grads)

        return params, state, tx, jax.eval_shape(updated, params, state, params, loss)

    def _updates(self, rate: Any) -> list[float]:
        """Return the largest number of each of the first two updates."""
        parts = self.built_anew()
        tx = parts.hooks.build_optimizer(
            run=parts.run, model=parts.program.model, learning_rate=rate
        )
        update = jax.jit(
            lambda grads, state, params: optax.with_extra_args_support(tx).update(
                grads, state, params, value=jnp.float32(1), grad=grads
            )
        )
        params = parts.state().params
        state, found = jax.jit(tx.init)(params), []
        for _ in range(2):
            updates, state = update(params, state, params)
            found.append(max(float(jnp.max(jnp.abs(each))) for each in jax.tree.leaves(updates)))
        return found


def _plain(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)
