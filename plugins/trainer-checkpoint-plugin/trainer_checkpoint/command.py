"""`trainer checkpoint`: look into checkpoints, without the devices they were made on."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from trainer_core.cli.parsing import number_at_least
from trainer_core.errors import UserError
from trainer_core.suggest import did_you_mean

if TYPE_CHECKING:
    from trainer_core.cli.failures import Context
    from trainer_core.cli.parsing import Parser

SUMMARY = "show, list and verify checkpoints, or say in what two differ"
ACTIONS = {"show": 1, "diff": 2, "list": 1, "verify": 1}  # and how many paths each takes


def configure(parser: Parser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "action", metavar="ACTION", help="show PATH, diff A B, list RUN, verify RUN"
    )
    parser.add_argument(
        "paths",
        metavar="PATH",
        nargs="+",
        type=Path,
        help="a run, one step of its checkpoints, or any checkpoint that Orbax wrote",
    )
    parser.add_argument(
        "--tolerance",
        metavar="X",
        type=number_at_least(0),
        default=0.0,
        help="diff: the largest absolute difference that counts as none",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.examples = [
        ("trainer checkpoint show runs/default", "the newest step: every array, and the config"),
        ("trainer checkpoint show runs/default/checkpoints/100", "another step"),
        ("trainer checkpoint diff runs/a runs/b", "exit code 1 where they differ"),
        ("trainer checkpoint list runs/default", "every step, and what else lies there"),
        ("trainer checkpoint verify runs/default", "read all; exit code 1 where one is damaged"),
    ]


def run(arguments: Namespace, context: Context) -> int:
    """Return 0; or 1 where two checkpoints differ, or one is damaged."""
    del context
    action, paths = arguments.action, arguments.paths
    if action not in ACTIONS:
        hint = did_you_mean(action, ACTIONS)
        raise UserError(f"there is no action {action!r}{hint}; there are: {', '.join(ACTIONS)}")
    if len(paths) != ACTIONS[action]:
        most = ACTIONS[action]
        raise UserError(f"{action} takes {most} path{'s' * (most > 1)}, not {len(paths)}")
    from trainer_core.terminal.output import say

    if action == "show":
        from trainer_checkpoint import show, stored

        found = stored.look(paths[0])
        if arguments.json:
            say(json.dumps(show.as_json(found), indent=2))
        else:
            show.print_out(found)
        return 0
    if action in ("list", "verify"):
        return _look_over(paths[0], action == "verify", arguments.json)
    from trainer_checkpoint import compare

    differences = compare.differences(*paths)
    if arguments.json:
        say(json.dumps(compare.as_json(differences), indent=2))
    else:
        compare.print_out(differences, arguments.tolerance)
    return int(compare.differ(differences, arguments.tolerance))


def _look_over(path: Path, reading: bool, as_json: bool) -> int:
    from trainer_checkpoint import verify
    from trainer_core.terminal.output import say

    found = verify.verified(path) if reading else verify.listed(path)
    if as_json:
        say(json.dumps(verify.as_json(found), indent=2))
    else:
        verify.print_out(found, good="verified" if reading else "whole")
    return int(reading and any(each.problem for each in found))
