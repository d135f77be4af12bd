"""Open a run and build its program where a signal leaves the import of jax whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainer_core.signals import interruptible

if TYPE_CHECKING:
    from trainer_core.config import Config
    from trainer_core.hooks import Hooks
    from trainer_core.program import Program
    from trainer_core.run import Run, StopRequest


def opened(config: Config, stopping: StopRequest | None = None) -> tuple[Run, Hooks]:
    """Do what `assemble.open_run` does, in a thread that a signal does not reach."""

    def work() -> tuple[Run, Hooks]:
        from trainer_core.assemble import open_run

        return open_run(config, stopping)

    return interruptible(work)


def built(run: Run, hooks: Hooks) -> Program:
    """Do what `program.build_program` does, likewise."""

    def work() -> Program:
        from trainer_core.program import build_program

        return build_program(run, hooks)

    return interruptible(work)
