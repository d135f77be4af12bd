"""`trainer plan`: what a step needs of devices, before anyone has them."""

from __future__ import annotations

import json
from argparse import Namespace
from typing import TYPE_CHECKING

from trainer_core.cli.parsing import number_at_least
from trainer_core.cli.settings import add_settings, split, topology_argument
from trainer_core.cli.waiting import waiting
from trainer_core.errors import UserError
from trainer_core.plan.devices import devices_of, prepare
from trainer_core.plan.topology import parse_topology
from trainer_core.terminal.output import say

if TYPE_CHECKING:
    from trainer_core.cli.failures import Context
    from trainer_core.cli.parsing import Parser

_SECONDS = 600.0  # of a search


def configure(parser: Parser) -> None:
    """Declare the arguments."""
    add_settings(parser)
    topology_argument(parser, "plan for these")
    parser.add_argument(
        "--search",
        action="store_true",
        help="compile other meshes and other model.remat too, and rank what fits",
    )
    parser.add_argument(
        "--seconds",
        metavar="SECONDS",
        type=number_at_least(0),
        help="of a search, which begins no other compilation after these; "
        f"{_SECONDS:.0f} by default",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.examples = [
        ("trainer plan recipe.toml", "for the devices that are here"),
        ("trainer plan recipe.toml --topology cpu:8", "for eight that are simulated"),
        ("trainer plan recipe.toml --topology v5e:16x16", "for a pod of TPUs that is not there"),
        ("trainer plan recipe.toml --topology v5e:8x8 --search", "the best mesh for 64 of them"),
    ]


def run(arguments: Namespace, context: Context) -> int:
    """Print the plan, and return 1 where it does not fit."""
    del context
    topology = None if arguments.topology is None else parse_topology(arguments.topology)
    if arguments.seconds is not None and not arguments.search:
        raise UserError("--seconds is for how long to search; give --search too")
    from trainer_core.cli.reading import say_imports
    from trainer_core.config import load_config

    recipe, overrides = split(arguments.settings)
    config = load_config(recipe, overrides, say_imports)
    if topology is not None:
        prepare(topology)
    with waiting("compiling") as told, config.placing():
        from trainer_core.plan.answer import answered
        from trainer_core.plan.variants import Variants
        from trainer_core.signals import interruptible

        variants = Variants(recipe, overrides, devices_of(topology))
        limit = _SECONDS if arguments.seconds is None else arguments.seconds
        seconds = limit if arguments.search else None
        answer = interruptible(lambda: answered(variants, seconds, told))
    if arguments.json:
        from trainer_core.plan.record import as_json

        say(json.dumps(as_json(answer), indent=2))
    else:
        from trainer_core.cli.plan_page import show

        show(answer, config, topology)
    return 1 if answer.plan.fits is False else 0
