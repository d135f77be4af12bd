"""What every plugin of a `[plugins.NAME]` table must hold to: observers watch, wrappers resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from trainer_core.hook_checks import only_watches
from trainer_core.loop import fit
from trainer_core.testing.parts import different_leaves
from trainer_core.testing.resume import resumed_and_unbroken
from trainer_core.testing.sharded import three_steps
from trainer_core.testing.suite import Suite


class PluginSuite(Suite):
    """The tests of an observer or a wrapper: subclass it, and name the plugin.

    class TestTable(PluginSuite):
        use = "table"
    """

    slot = "plugins"

    def test_a_run_with_it_ends_well(self, tmp_path: Path) -> None:
        result = fit(self._run_in(tmp_path))
        steps = self.recipe()["run"]["steps"]
        if result.step != steps or not np.isfinite(result.metrics["loss"]):
            self.fail(f"a run of {steps} steps ended at step {result.step}, with {result.metrics}")

    def test_watching_changes_nothing_that_is_trained(self, tmp_path: Path) -> None:
        if not self._only_watches():
            return  # a wrapper may
        alone = self._run_in(tmp_path / "alone")
        alone["plugins"] = {
            name: given for name, given in alone["plugins"].items() if name != "subject"
        }
        ends = [fit(recipe).state for recipe in (alone, self._run_in(tmp_path / "with"))]
        if changed := different_leaves(ends[1].params, ends[0].params):
            self.fail(f"a run with it trains otherwise: {', '.join(changed)}")

    def test_it_can_be_closed_before_it_began(self) -> None:
        parts = self.built_anew()
        failure = RuntimeError("the run failed before its first step")
        try:
            parts.hooks.close(run=parts.run, error=failure)
        except Exception as error:
            self.fail(f"close raised {type(error).__name__}: {error}")
        notes = getattr(failure, "__notes__", [])
        if notes:
            self.fail(f"{notes[0]}. `close` is called also where `start` never was")

    def test_a_resumed_run_is_the_unbroken_one_to_the_bit(self, tmp_path: Path) -> None:
        if self._only_watches():
            return
        resumed, unbroken = resumed_and_unbroken(self.parts(), self.built_anew(), tmp_path)
        if changed := different_leaves(resumed, unbroken):
            self.fail(
                f"a resumed run differs from the unbroken one in {', '.join(changed)}: all that a "
                f"step remembers must be in `state.extra`, nothing in the object"
            )

    def test_its_state_is_spread_over_devices(self) -> None:
        if self._only_watches():
            return
        if whole := self.sharded(three_steps)["whole"]:
            self.fail(
                f"every device holds all of {', '.join(whole)}: keep state in trees like that of "
                f"the parameters, made by jax.tree.map over them"
            )

    def _run_in(self, folder: Path) -> dict[str, Any]:
        return self.recipe(run={"directory": str(folder / "run")})

    def _only_watches(self) -> bool:
        return only_watches(type(self._plugin()))
