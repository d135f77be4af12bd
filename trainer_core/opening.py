"""Open a run, build its program, and close its plugins, whatever a signal or an error cuts off."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from trainer_core.compile_cache import without_torn_entries
from trainer_core.signals import interruptible

if TYPE_CHECKING:
    from trainer_core.config import Config
    from trainer_core.hooks import Hooks
    from trainer_core.program import Program
    from trainer_core.run import Run, StopRequest


def opened(config: Config, stopping: StopRequest | None = None) -> tuple[Run, Hooks]:
    """Do what `assemble.open_run` does, in a thread that a signal does not reach.

    With several processes a stop is deferred from here on: the others hear of it there.
    """

    def work() -> tuple[Run, Hooks]:
        from trainer_core.assemble import open_run

        return open_run(config, stopping)

    if stopping is not None and (config.distributed.processes or 1) > 1:
        stopping.defer()
    return interruptible(work)


def built(run: Run, hooks: Hooks) -> Program:
    """Do what `program.build_program` does, likewise."""

    def work() -> Program:
        from trainer_core.program import build_program

        return build_program(run, hooks)

    return interruptible(work)


@contextmanager
def closing(run: Run, hooks: Hooks) -> Iterator[None]:
    """Close the plugins in the end, and tell the other processes of an error, then too."""
    failure: BaseException | None = None
    try:
        with without_torn_entries():
            yield
    except BaseException as error:
        failure = error
        run.tell(error)
        raise
    finally:
        run.stopping.defer()  # what closes, and a save that is under way, is not cut off
        try:
            hooks.close(run=run, error=failure)
        except BaseException as error:
            failure = error
            run.tell(error)
            raise
        finally:
            if failure is not None and run.group is not None:
                run.group.fail_together()
