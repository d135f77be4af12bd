"""The `trainer` command."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from trainer_core.cli import commands
from trainer_core.cli.failures import Context, crashed, interrupted, refused
from trainer_core.errors import TrainerError
from trainer_core.terminal.output import flush


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command, and return its exit code: 0 done, 1 the run failed, 2 a mistake.

    Args:
        arguments: without the name of the program; those of the process where not given.
    """
    context = Context()
    code = _run(list(sys.argv[1:] if arguments is None else arguments), context)
    flush()
    if context.must_leave_at_once(code):
        # Waiting for a compilation that nobody needs any more, or for other processes that wait
        # for this one, would hang; tearing the interpreter down under them would crash.
        os._exit(code)
    return code


def _run(arguments: list[str], context: Context) -> int:
    try:
        return commands.run(arguments, context)
    except TrainerError as error:
        return refused(error, context)
    except KeyboardInterrupt:
        return interrupted(context)
    except BrokenPipeError:
        return 0  # Whoever read our output has read enough: `trainer plugins | head`.
    except Exception as error:
        return crashed(error, context)
