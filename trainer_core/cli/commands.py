"""The commands of `trainer`: each is imported only when it is called."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import attrs

from trainer_core.cli.parsing import Help, Parser, print_help
from trainer_core.errors import UserError
from trainer_core.installed import Entry, left_out, registered, without_plugins
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


ALONE = "--no-plugins"
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
    "new-plugin": Command(
        "trainer_core.cli.new_plugin", "write a package to begin a plugin of your own with"
    ),
}


def added() -> dict[str, list[Entry]]:
    """Return the commands that installed packages add, by name; only metadata is read.

    None replaces one of the core's. Of several with one name, none is called.
    """
    found: dict[str, list[Entry]] = {}
    for entry in sorted(registered(GROUP), key=lambda each: each.name):
        if entry.name not in COMMANDS:
            found.setdefault(entry.name, []).append(entry)
    return found


def run(arguments: list[str], context: Context) -> int:
    """Run the command that the first argument names."""
    if arguments[:1] == [ALONE]:
        with without_plugins():
            return run(arguments[1:], context)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print_help(_overview())
        return 0
    name, *rest = arguments
    if name in ("-V", "--version"):
        from importlib.metadata import version

        Page().line(f"trainer-core {version('trainer-core')}")
        return 0
    if ALONE in rest:
        raise UserError(f"{ALONE} stands before the command: `trainer {ALONE} {name} ...`")
    module, summary = _own(name) if name in COMMANDS else _foreign(name)
    parser = Parser(f"trainer {name}", summary)
    module.configure(parser)
    parsed = parser.parse(rest)
    if parsed is None:
        return 0
    context.wants_traceback = context.wants_traceback or parsed.traceback
    code: int = module.run(parsed, context)
    return code


def _own(name: str) -> tuple[Any, str]:
    command = COMMANDS[name]
    return importlib.import_module(command.module), command.summary


def _foreign(name: str) -> tuple[Any, str]:
    """The module of a command that a package adds, and what it does."""
    known = added()
    if name not in known:
        unused = left_out(GROUP, name)
        if unused:
            raise UserError(
                f"the command {name!r} comes with {unused[0].package}, which {ALONE} leaves out"
            )
        names = [*COMMANDS, *known]
        raise UserError(
            f"there is no command {name!r}{did_you_mean(name, names)}; "
            f"there are: {', '.join(names)}; `trainer --help` says what they do"
        )
    offered = known[name]
    if len(offered) > 1:
        packages = " and ".join(str(each.package) for each in offered)
        raise UserError(f"the command {name!r} is offered by {packages}; uninstall one of them")
    module = load_command(offered[0])
    return module, str(module.SUMMARY)


def load_command(entry: Entry) -> Any:
    """Import the module of a command that a package adds.

    Raises:
        UserError: with the package, its version and the cause.
    """
    what = f"the command {entry.name!r} of {entry.package} cannot be loaded from {entry.target}"
    try:
        module = importlib.import_module(entry.target)
    except (Exception, SystemExit) as error:  # one broken package takes no other command away
        raise UserError(f"{what}: {type(error).__name__}: {error}") from error
    missing = [each for each in ("SUMMARY", "configure", "run") if not hasattr(module, each)]
    if missing:
        raise UserError(f"{what}: it has no {' and no '.join(missing)}")
    return module


def _summary(offered: list[Entry]) -> str:
    if len(offered) > 1:
        return f"(offered by {' and '.join(str(each.package) for each in offered)})"
    try:
        return str(load_command(offered[0]).SUMMARY)
    except UserError as error:
        return f"({error})"


def _overview() -> Help:
    return Help(
        usage="trainer COMMAND [ARGUMENTS]",
        about="Trains models in JAX: a small loop that emits hooks, and plugins that do the rest.",
        sections=[
            (
                "commands",
                [
                    *((name, command.summary) for name, command in COMMANDS.items()),
                    *((name, _summary(offered)) for name, offered in added().items()),
                ],
            ),
            (
                "first steps",
                [
                    ("trainer train", "train a tiny model on Python's own standard library"),
                    ("trainer train run.steps=2000", "the same for longer"),
                    ("trainer COMMAND --help", "the arguments of a command, with examples"),
                    (
                        f"trainer {ALONE} COMMAND",
                        "with nothing that other packages than trainer-core register",
                    ),
                ],
            ),
        ],
    )
