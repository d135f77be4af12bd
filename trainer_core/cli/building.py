"""A run's program, for the commands that look at it and do not train."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainer_core.cli.waiting import waiting

if TYPE_CHECKING:
    from trainer_core.config import Config
    from trainer_core.program import Program


def program_of(config: Config) -> Program:
    """Return what a config makes: of shapes alone, no parameter is made.

    Args:
        config: a resolved one.
    """
    with waiting("building"), config.placing():
        from trainer_core.opening import built, closing, opened

        run, hooks = opened(config)
        with closing(run, hooks):
            return built(run, hooks)
