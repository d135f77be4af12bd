"""A run's program, for the commands that look at it and do not train."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainer_core.cli.waiting import waiting
from trainer_core.plan.devices import devices_of, prepare

if TYPE_CHECKING:
    from trainer_core.config import Config
    from trainer_core.plan.topology import Topology
    from trainer_core.program import Program


def program_of(config: Config, topology: Topology | None = None) -> Program:
    """Return what a config makes: of shapes alone, no parameter is made, no process connected.

    Args:
        config: a resolved one.
        topology: the devices, which need not be there; by default those of this process.
    """
    if topology is not None:
        prepare(topology)
    with waiting("building"), config.placing():
        from trainer_core.plan.planning import program_on
        from trainer_core.signals import interruptible

        return interruptible(lambda: program_on(config, devices_of(topology)))
