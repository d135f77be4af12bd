"""`trainer plugins`: what is installed for each slot, and the settings of one plugin."""

from __future__ import annotations

import json
from argparse import Namespace
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from trainer_core.terminal.output import say
from trainer_core.terminal.page import Page

if TYPE_CHECKING:
    from trainer_core.cli.failures import Context
    from trainer_core.cli.parsing import Parser
    from trainer_core.installed import Package
    from trainer_core.registry import Candidate


@attrs.frozen
class Listed:
    """One row of the table.

    Attributes:
        state: `default`, `ok`, `broken`, or why the name alone does not choose it.
        error: why it is broken.
    """

    candidate: Candidate
    state: str
    error: str = ""


def configure(parser: Parser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "name", metavar="NAME", nargs="?", help="show the settings of this plugin instead"
    )
    parser.add_argument(
        "--check", action="store_true", help="import each plugin, to see whether it can be used"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.examples = [
        ("trainer plugins", "what is installed; nothing is imported"),
        ("trainer plugins --check", "what is broken, and why; exits with 1 where anything is"),
        ("trainer plugins adamw", "the settings of the optimizer adamw"),
    ]


def run(arguments: Namespace, context: Context) -> int:
    """Print the table, or the settings of one plugin."""
    del context
    if arguments.name is not None:
        from trainer_core.cli.plugin_settings import show

        show(arguments.name, arguments.json)
        return 0
    listed = installed(arguments.check)
    if arguments.json:
        found = {"plugins": [_as_json(each) for each in listed], "notes": notes()}
        say(json.dumps(found, indent=2))
    else:
        _show(listed, arguments.check)
    return 1 if any(each.error for each in listed) else 0


def installed(check: bool) -> list[Listed]:
    """Return what the installed packages register, by slot.

    Args:
        check: import each, to see whether it is broken.
    """
    from trainer_core.registry import DEFAULT_PLUGINS, PLUGINS, SLOTS, candidates

    listed = []
    for slot in (*SLOTS.values(), PLUGINS):
        offered = candidates(slot)
        claims = Counter(candidate.name for candidate in offered)
        defaults = DEFAULT_PLUGINS if slot is PLUGINS else (slot.default,)
        for candidate in offered:
            state = "default" if candidate.name in defaults else ""
            if claims[candidate.name] > 1:
                state = f'use "{candidate.distribution}:{candidate.name}"'
            error = what_is_wrong(candidate) if check else ""
            listed.append(Listed(candidate, _checked(state, error) if check else state, error))
    return [*listed, *_commands(check)]


def notes() -> list[str]:
    """Return what a person should know of what is installed, though it may be right."""
    from trainer_core.cli.commands import GROUP
    from trainer_core.installed import NO_PLUGINS, core_alone, everything
    from trainer_core.registry import PLUGINS, SLOTS
    from trainer_core.suggest import did_you_mean

    groups = [GROUP, *(slot.group for slot in (*SLOTS.values(), PLUGINS))]
    found = everything()
    said = [_twice(package, first) for package, first in found.hidden]
    said += [
        f"{entry.package} registers {entry.name!r} in {entry.group}, a group that this "
        f"trainer-core has not{did_you_mean(entry.group, groups)}"
        for entry in found.entries
        if entry.group not in groups
    ]
    if core_alone():
        said.append(f"--no-plugins, or {NO_PLUGINS} in the environment, leaves all others out")
    return said


def _twice(package: Package, first: Package) -> str:
    said = f"{package.name} is installed more than once: {first.version} in {first.folder}"
    if Path(first.folder).parent == Path(package.folder).parent:
        return (
            f"{said} and {package.version} beside it; which of them is imported is not known: "
            f"uninstall it until it is gone, and install it again"
        )
    return f"{said} is used, {package.version} in {package.folder} is not"


def what_is_wrong(candidate: Candidate) -> str:
    """Return why a plugin cannot be used; nothing where it can."""
    from trainer_core.errors import UserError
    from trainer_core.hook_checks import check_class
    from trainer_core.registry import load

    where = f"[{candidate.slot.name}] {candidate.name}"
    try:
        check_class(load(candidate, where), candidate, where)
    except UserError as error:
        return str(error)
    except Exception as error:  # whatever a class does when it is looked at
        return f"{where}: looking at {candidate.target} raised {type(error).__name__}: {error}"
    return ""


def _commands(check: bool) -> list[Listed]:
    from trainer_core.cli.commands import GROUP, added, load_command
    from trainer_core.errors import UserError
    from trainer_core.registry import Candidate, Slot

    listed = []
    for entry in (each for offered in added().values() for each in offered):
        package, error = entry.package, ""
        if check:
            try:
                load_command(entry)
            except UserError as failure:
                error = str(failure)
        slot = Slot("command", GROUP, "", ())
        candidate = Candidate(slot, entry.name, entry.target, package.name, package.version)
        listed.append(Listed(candidate, _checked("", error) if check else "", error))
    return listed


def _checked(state: str, error: str) -> str:
    if error:
        return "broken"
    return f"ok, {state}" if state else "ok"


def _show(listed: list[Listed], check: bool) -> None:
    page = Page()
    page.table(
        ("slot", "name", "distribution", "version", "state"),
        [
            (
                each.candidate.slot.name,
                each.candidate.name,
                each.candidate.distribution or "",
                each.candidate.version,
                each.state,
            )
            for each in listed
        ],
    )
    for each in listed:
        if each.error:
            page.line()
            page.rows([("broken", each.error)], style="red")
    for note in notes():
        page.line()
        page.rows([("note", note)], style="yellow")
    page.line()
    page.rows(
        [
            ("trainer plugins NAME", "shows the settings of one"),
            *([] if check else [("trainer plugins --check", "imports each: is any broken?")]),
        ],
        style="cyan",
    )


def _as_json(each: Listed) -> dict[str, Any]:
    candidate = each.candidate
    return {
        "slot": candidate.slot.name,
        "name": candidate.name,
        "distribution": candidate.distribution,
        "version": candidate.version,
        "target": candidate.target,
        "state": each.state,
        **({"error": each.error} if each.error else {}),
    }
