"""The commands of `trainer`: each is imported only when it is called."""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

import attrs

from trainer_core.cli.parsing import Help, Parser, print_help
from trainer_core.errors import UserError
from trainer_core.suggest import did_you_mean
from trainer_core.terminal.page import Page

if TYPE_CHECKING:
    from trainer_core.cli.failures import Context


@attrs.frozen
class Command:
    """One command.

    Attributes:
        module: in it, `configure(parser)` declares the arguments, and
            `run(arguments, context)` returns the exit code; that of a package has a `SUMMARY`
            too.
        summary: what it does, in one line.
    """

    module: str
    summary: str


GROUP = "trainer.commands"  # entry points: the commands that packages add
COMMANDS = {
    "train": Command("trainer_core.cli.train", "train, or go on where a run was left"),
    "sample": Command("trainer_core.cli.sample", "let the model of a run write text"),
    "evaluate": Command("trainer_core.cli.evaluate", "measure the model of a run on held-out data"),
    "explain": Command(
        "trainer_core.cli.explain", "show what a config comes to, and where each value is from"
    ),
    "plan": Command(
        "trainer_core.cli.plan",
        "compile the step for devices that need not be there: what it takes of them",
    ),
    "plugins": Command(
        "trainer_core.cli.plugins",
        "list what is installed for each slot, or one plugin's settings",
    ),
}


def modules() -> dict[str, str]:
    """Return where each command is: the core's, and those that installed packages add.

    None replaces another; only metadata is read.
    """
    added = {entry.name: entry.value for entry in entry_points(group=GROUP)}
    own = {name: command.module for name, command in COMMANDS.items()}
    return own | {name: added[name] for name in sorted(added) if name not in own}


def run(arguments: list[str], context: Context) -> int:
    """Run the command that the first argument names."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print_help(_overview())
        return 0
    name, *rest = arguments
    if name in ("-V", "--version"):
        from importlib.metadata import version

        Page().line(f"trainer-core {version('trainer-core')}")
        return 0
    known = modules() if name not in COMMANDS else {name: COMMANDS[name].module}
    if name not in known:
        raise UserError(
            f"there is no command {name!r}{did_you_mean(name, known)}; "
            f"there are: {', '.join(known)}; `trainer --help` says what they do"
        )
    module = importlib.import_module(known[name])
    parser = Parser(f"trainer {name}", _summary(name, known[name]))
    module.configure(parser)
    parsed = parser.parse(rest)
    if parsed is None:
        return 0
    context.wants_traceback = context.wants_traceback or parsed.traceback
    code: int = module.run(parsed, context)
    return code


def _summary(name: str, module: str) -> str:
    if name in COMMANDS:
        return COMMANDS[name].summary
    try:
        return str(importlib.import_module(module).SUMMARY)
    except Exception as error:  # one broken package does not take the help away
        return f"(cannot be loaded: {type(error).__name__}: {error})"


def _overview() -> Help:
    return Help(
        usage="trainer COMMAND [ARGUMENTS]",
        about="Trains models in JAX: a small loop that emits hooks, and plugins that do the rest.",
        sections=[
            ("commands", [(name, _summary(name, module)) for name, module in modules().items()]),
            (
                "first steps",
                [
                    ("trainer train", "train a tiny model on Python's own standard library"),
                    ("trainer train run.steps=2000", "the same for longer"),
                    ("trainer COMMAND --help", "the arguments of a command, with examples"),
                ],
            ),
        ],
    )
