"""One recipe on the same devices with other settings: built of shapes, or compiled."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from trainer_core.config import load_config
from trainer_core.plan.planning import Plan, plan_step, program_on
from trainer_core.program import Program

if TYPE_CHECKING:
    import jax

    from trainer_core.config import Config


@attrs.frozen
class Variants:
    """What a plan can be made of again.

    Attributes:
        recipe: a TOML file; None for the defaults.
        overrides: `KEY=VALUE`, as they were typed.
        devices: all of the mesh.
    """

    recipe: Path | None
    overrides: Sequence[str]
    devices: Sequence[jax.Device]

    def config(self, *changes: str) -> Config:
        """Return the config with these `KEY=VALUE` on top.

        Raises:
            UserError: they do not fit it.
        """
        return load_config(self.recipe, [*self.overrides, *changes])

    def build(self, *changes: str) -> Program:
        """Return the program of `config`; nothing is compiled."""
        return program_on(self.config(*changes), self.devices)

    def plan(self, *changes: str) -> Plan:
        """Return the plan of `config`, whose step is compiled."""
        return plan_step(self.config(*changes), self.devices)
