"""`trainer explain TOPIC`: what a run would be made of, before it is made."""

from __future__ import annotations

import importlib
from argparse import Namespace
from typing import TYPE_CHECKING

import attrs

from trainer_core.cli.settings import add_settings
from trainer_core.errors import UserError
from trainer_core.suggest import did_you_mean

if TYPE_CHECKING:
    from trainer_core.cli.failures import Context
    from trainer_core.cli.parsing import Parser


@attrs.frozen
class Topic:
    """One thing to explain.

    Attributes:
        module: in it, `explain(config, as_json)` prints it.
        summary: what it shows, in one line.
    """

    module: str
    summary: str


TOPICS = {
    "config": Topic("explain_config", "every key: its value, where that came from, what it means"),
    "optimizer": Topic("explain_optimizer", "each parameter: by which rule it is updated"),
}


def configure(parser: Parser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "topic",
        metavar="TOPIC",
        help="; ".join(f"{name}: {topic.summary}" for name, topic in TOPICS.items()),
    )
    add_settings(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.examples = [
        ("trainer explain config", "every key that can be set, with its default"),
        ("trainer explain config recipe.toml", "what a recipe comes to"),
        ("trainer explain config optimizer.use=sgd", "the keys of another plugin"),
        ("trainer explain optimizer optimizer.use=muon", "which parameters are orthogonalised"),
    ]


def run(arguments: Namespace, context: Context) -> int:
    """Print what the topic's module makes of a config."""
    del context
    if arguments.topic not in TOPICS:
        raise UserError(
            f"there is nothing about {arguments.topic!r} to explain"
            f"{did_you_mean(arguments.topic, TOPICS)}; there is: {', '.join(TOPICS)}"
        )
    from trainer_core.cli.settings import split
    from trainer_core.config import load_config

    config = load_config(*split(arguments.settings))
    module = importlib.import_module(f"trainer_core.cli.{TOPICS[arguments.topic].module}")
    module.explain(config, arguments.json)
    return 0
