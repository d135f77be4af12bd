"""The `trainer` command."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

INTERRUPTED = 128 + signal.SIGINT  # the exit code, as shells have it


def main() -> None:
    """Run the command of this process, and end it."""
    # Wherever the loop does not handle it, SIGTERM unwinds as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        from trainer_core.terminal.errors import show_warnings
        from trainer_core.terminal.output import flush, keep_stdout

        show_warnings()
        if "--json" in sys.argv:
            keep_stdout()
        code = run(sys.argv[1:])
    except KeyboardInterrupt:  # while the command itself was imported
        os._exit(INTERRUPTED)
    # Nothing is left to stop in order: another signal may end the process here, with its code.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os._exit(code))
    flush()
    if _must_leave_at_once(code):
        _leave_the_others()
        os._exit(code)
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Run one command, and return its exit code: 0 done, 1 the run failed, 2 a mistake.

    Args:
        arguments: without the name of the program.
    """
    from trainer_core.cli import commands
    from trainer_core.cli.failures import Context, crashed, refused
    from trainer_core.errors import TrainerError

    context = Context()
    try:
        return commands.run(list(arguments), context)
    except TrainerError as error:
        return refused(error, context)
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        return crashed(error, context)


def _must_leave_at_once(code: int) -> bool:
    """Whether an orderly shutdown of the interpreter would hang or crash."""
    signals = sys.modules.get("trainer_core.signals")
    if signals is not None and signals.is_working():
        return True
    # The others of a run wait for this process, and it would wait for them.
    is_bound = getattr(sys.modules.get("trainer_core.distributed"), "is_bound", None)
    return code != 0 and is_bound is not None and is_bound()


def _leave_the_others() -> None:
    # A thread that still imports the module has connected to nobody.
    leave = getattr(sys.modules.get("trainer_core.distributed"), "leave", None)
    if leave is not None:
        leave()
