"""`trainer convert`: from a checkpoint of other code to a run that goes on, and back."""

from __future__ import annotations

import json
import shlex
from argparse import Namespace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer_core.cli.parsing import at_least
from trainer_core.cli.settings import add_settings, split
from trainer_core.errors import UserError
from trainer_core.signals import interruptible

if TYPE_CHECKING:
    from trainer_checkpoint.convert.into_run import Converted
    from trainer_checkpoint.convert.out_of_run import Written
    from trainer_core.cli.failures import Context
    from trainer_core.cli.parsing import Parser

SUMMARY = "turn a checkpoint of other code into a run that goes on, or a run into such a checkpoint"


def configure(parser: Parser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "source",
        metavar="SOURCE",
        type=Path,
        help="a checkpoint that Orbax wrote (Linen, NNX, or a run's); with --to: a run",
    )
    add_settings(parser)
    parser.add_argument(
        "--mapping", metavar="FILE.toml", type=Path, help="rules for the names of the arrays"
    )
    parser.add_argument(
        "--fresh-optimizer",
        action="store_true",
        help="leave the optimizer's state out, and begin with a new one",
    )
    parser.add_argument(
        "--step", metavar="N", type=at_least(0), help="of a checkpoint that does not say its step"
    )
    parser.add_argument(
        "--to", metavar="DIRECTORY", type=Path, help="write the run SOURCE as a plain checkpoint"
    )
    parser.add_argument(
        "--like",
        metavar="CHECKPOINT",
        type=Path,
        help="with --to: take the form of this one, by the mapping backwards",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print what would become of every array"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.examples = [
        ("trainer convert old/100 new.toml --dry-run", "what would become of every array"),
        ("trainer convert old/100 new.toml", "write the run; `trainer train new.toml` goes on"),
        ("trainer convert old/100 new.toml --mapping names.toml", "with rules for the names"),
        ("trainer convert runs/new --to old/200 --like old/100 --mapping names.toml", "and back"),
    ]


def run(arguments: Namespace, context: Context) -> int:
    """Convert, and print what was done."""
    del context
    _check(arguments)
    from trainer_checkpoint.convert.mapping import load_mapping

    rules = load_mapping(arguments.mapping)
    recipe, overrides = split(arguments.settings)
    if arguments.to is None:
        converted = _loaded("into_run").convert_into_run(
            arguments.source,
            recipe,
            overrides,
            rules,
            step=arguments.step,
            fresh_optimizer=arguments.fresh_optimizer,
            dry=arguments.dry_run,
        )
        again = shlex.join(["trainer", "train", *arguments.settings])
        _show(converted, arguments, f"{again} goes on from there")
        return 0
    written = _loaded("out_of_run").convert_out_of_run(
        arguments.source,
        overrides,
        arguments.to,
        arguments.like,
        rules,
        fresh_optimizer=arguments.fresh_optimizer,
        dry=arguments.dry_run,
    )
    _show(written, arguments, f"trainer checkpoint show {arguments.to} lists it")
    return 0


def _loaded(name: str) -> Any:
    """Import jax, and what needs it, in a thread that a signal does not reach."""
    return interruptible(lambda: import_module(f"trainer_checkpoint.convert.{name}"))


def _check(arguments: Namespace) -> None:
    recipe, _ = split(arguments.settings)
    if arguments.to is None and arguments.like is not None:
        raise UserError("--like belongs to --to: it says which form a run is written in")
    if arguments.to is not None and recipe is not None:
        raise UserError(f"with --to, the run has its own config; leave {recipe} out")
    if arguments.to is not None and arguments.step is not None:
        raise UserError("with --to, the run has its own step; leave --step out")
    if arguments.to is not None and arguments.like is None and arguments.mapping is not None:
        raise UserError("--mapping belongs to --like: it says how such a checkpoint becomes a run")


def _show(done: Converted | Written, arguments: Namespace, after: str) -> None:
    from trainer_checkpoint.convert import table
    from trainer_core.terminal.output import say
    from trainer_core.terminal.page import Page

    if arguments.json:
        place = {"directory": str(done.directory), "step": done.step, "dry": arguments.dry_run}
        say(json.dumps(place | table.as_json(done.plan, done.specs), indent=2))
        return
    page = Page()
    rows = [("arrays", table.counted(done.plan)), *(("note", each) for each in done.plan.idle)]
    if arguments.dry_run:
        table.print_out(done.plan, done.specs)
        page.line()
        rows.append(("written", "nothing: this is a dry run"))
    else:
        rows += table.left_out(done.plan)
        rows.append(("written", str(done.directory)))
    if done.step is not None:
        rows.append(("step", f"{done.step:,}"))
    if not arguments.dry_run:
        rows.append(("next", after))
    if arguments.fresh_optimizer:
        rows.append(("optimizer", "begins with a new state, as --fresh-optimizer says"))
    page.rows(rows)
