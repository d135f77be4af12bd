"""`trainer compare`: where two runs part, step by step and path by path."""

from __future__ import annotations

import json
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trainer_core.cli.parsing import at_least, number_at_least
from trainer_core.errors import UserError

if TYPE_CHECKING:
    from trainer_core.cli.failures import Context
    from trainer_core.cli.parsing import Parser

SUMMARY = "compare two runs: losses, gradient norms, and the first path that differs"


def configure(parser: Parser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "a",
        metavar="A",
        help="a run to read, a log (.jsonl) of other code, or a recipe (.toml) to train",
    )
    parser.add_argument("b", metavar="B", help="another of these")
    parser.add_argument(
        "settings", metavar="KEY=VALUE", nargs="*", default=[], help="is set in each recipe"
    )
    parser.add_argument(
        "--steps",
        metavar="N",
        type=at_least(1),
        help="compare, and train, no further; the schedules stay those of the whole run",
    )
    parser.add_argument(
        "--into",
        metavar="DIRECTORY",
        type=Path,
        help="a new folder to keep what is trained, in a run each; else it is deleted",
    )
    parser.add_argument(
        "--tolerance",
        metavar="X",
        type=number_at_least(0),
        default=0.0,
        help="the largest absolute difference that counts as none",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.examples = [
        ("trainer compare runs/linen runs/nnx", "exit code 1 where they differ"),
        ("trainer compare linen.toml nnx.toml --steps 20", "train both, and compare"),
        ("trainer compare runs/old recipe.toml --steps 20", "does it still train as it did?"),
        ("trainer compare old.jsonl runs/new --tolerance 1e-5", "the log of another trainer"),
    ]


def run(arguments: Namespace, context: Context) -> int:
    """Compare, and print what was found: 0 where they are equal, 1 where they are not."""
    del context
    names, overrides = _sides(arguments)
    if arguments.into is not None:
        return _compare(names, overrides, arguments, arguments.into)
    with tempfile.TemporaryDirectory(prefix="trainer-compare-") as folder:
        return _compare(names, overrides, arguments, Path(folder))


def _sides(arguments: Namespace) -> tuple[list[str], list[str]]:
    from trainer_checkpoint.comparing.training import is_recipe

    given = [arguments.a, arguments.b, *arguments.settings]  # in any order
    names = [text for text in given if "=" not in text]
    overrides = [text for text in given if "=" in text]
    if len(names) != 2:
        raise UserError(f"compare takes two runs, logs or recipes, not {len(names)}")
    if not any(map(is_recipe, names)):
        odd = [*overrides[:1], *(["--into"] if arguments.into is not None else [])]
        if odd:
            raise UserError(f"{odd[0]} is for a recipe that is trained here; {names[0]} is none")
    if arguments.into is not None and arguments.into.exists():
        raise UserError(f"{arguments.into} exists already; give --into a new folder")
    return names, overrides


def _compare(
    names: Sequence[str], overrides: Sequence[str], arguments: Namespace, folder: Path
) -> int:
    from trainer_checkpoint.comparing.page import print_out
    from trainer_checkpoint.comparing.report import as_json, compare
    from trainer_checkpoint.comparing.side import read_side
    from trainer_checkpoint.comparing.training import is_recipe, train_recipes
    from trainer_core.cli.waiting import waiting
    from trainer_core.terminal.output import say

    last = arguments.steps
    for name in names:
        if not is_recipe(name):
            read_side(name, Path(name), last)  # nothing is trained beside what cannot be read
    places = train_recipes(names, overrides, folder, last)
    with waiting("comparing"):
        a, b = (read_side(*side, last) for side in zip(names, places, strict=True))
        report = compare(a, b, arguments.tolerance)
    if arguments.json:
        say(json.dumps(as_json(report), indent=2))
    else:
        print_out(report, is_kept=arguments.into is not None or not any(map(is_recipe, names)))
    return int(report.differ)
