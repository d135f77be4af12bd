"""`trainer plan`: what a step needs of devices, before anyone has them."""

from __future__ import annotations

import json
from argparse import Namespace
from typing import TYPE_CHECKING

from trainer_core.cli.settings import add_settings, split
from trainer_core.cli.waiting import waiting
from trainer_core.plan.topology import devices_of, parse_topology, prepare
from trainer_core.terminal.output import say

if TYPE_CHECKING:
    from trainer_core.cli.failures import Context
    from trainer_core.cli.parsing import Parser


def configure(parser: Parser) -> None:
    """Declare the arguments."""
    add_settings(parser)
    parser.add_argument(
        "--topology",
        metavar="DEVICES",
        help="plan for these, which need not be there: v5e:4x4, v5p:4x4x4, gpu:h100x16, cpu:8; "
        "by default those that are here",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.examples = [
        ("trainer plan recipe.toml", "for the devices that are here"),
        ("trainer plan recipe.toml --topology cpu:8", "for eight that are simulated"),
        ("trainer plan recipe.toml --topology v5e:16x16", "for a pod of TPUs that is not there"),
    ]


def run(arguments: Namespace, context: Context) -> int:
    """Print the plan, and return 1 where it does not fit."""
    del context
    topology = parse_topology(arguments.topology) if arguments.topology else None
    from trainer_core.config import load_config

    config = load_config(*split(arguments.settings))
    if topology is not None:
        prepare(topology)
    with waiting("compiling"), config.placing():
        from trainer_core.plan.planning import plan_step
        from trainer_core.signals import interruptible

        devices = devices_of(topology)
        plan = interruptible(lambda: plan_step(config, devices))
    if arguments.json:
        from trainer_core.plan.record import as_json

        say(json.dumps(as_json(plan), indent=2))
    else:
        from trainer_core.cli.plan_page import show

        show(plan, config, topology)
    return 1 if plan.fits is False else 0
