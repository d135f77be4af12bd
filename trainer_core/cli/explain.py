"""`trainer explain TOPIC`: what a run would be made of, before it is made."""

from __future__ import annotations

import importlib
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from trainer_core.cli.settings import add_settings, topology_argument
from trainer_core.errors import UserError
from trainer_core.plan.topology import parse_topology
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
        of_devices: whether it also takes the devices, and a file to draw it in.
    """

    module: str
    summary: str
    of_devices: bool = False


TOPICS = {
    "config": Topic("explain_config", "every key: its value, where that came from, what it means"),
    "hooks": Topic("explain_hooks", "each hook: who is called, in which order, from which package"),
    "optimizer": Topic("explain_optimizer", "each parameter: by which rule it is updated"),
    "sharding": Topic(
        "explain_sharding", "each array: over which devices it is spread", of_devices=True
    ),
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
    parser.add_argument("--plot", metavar="FILE.svg", help="draw it too: sharding")
    topology_argument(parser, "sharding: over these")
    parser.examples = [
        ("trainer explain config", "every key that can be set, with its default"),
        ("trainer explain config recipe.toml", "what a recipe comes to"),
        ("trainer explain config optimizer.use=sgd", "the keys of another plugin"),
        ("trainer explain hooks recipe.toml", "which plugins answer and wrap what"),
        ("trainer explain optimizer optimizer.use=muon", "which parameters are orthogonalised"),
        ("trainer explain sharding shard.mesh={fsdp=4}", "what each of four devices would hold"),
        ("trainer explain sharding recipe.toml --topology cpu:8", "over eight that are simulated"),
    ]


def run(arguments: Namespace, context: Context) -> int:
    """Print what the topic's module makes of a config."""
    del context
    if arguments.topic not in TOPICS:
        raise UserError(
            f"there is nothing about {arguments.topic!r} to explain"
            f"{did_you_mean(arguments.topic, TOPICS)}; there is: {', '.join(TOPICS)}"
        )
    from trainer_core.cli.reading import say_imports
    from trainer_core.cli.settings import split
    from trainer_core.config import load_config

    topic = TOPICS[arguments.topic]
    if arguments.plot is not None and not topic.of_devices:
        raise UserError(f"--plot: {arguments.topic} has no drawing; only sharding has")
    if arguments.topology is not None and not topic.of_devices:
        raise UserError(
            f"--topology: {arguments.topic} is the same on any devices; only sharding is not"
        )
    plot = None if arguments.plot is None else _file(arguments.plot)
    topology = None if arguments.topology is None else parse_topology(arguments.topology)
    config = load_config(*split(arguments.settings), say_imports)
    module = importlib.import_module(f"trainer_core.cli.{topic.module}")
    more: dict[str, Any] = {}
    if topic.of_devices:
        more = {"plot": plot, "topology": topology}
    module.explain(config, arguments.json, **more)
    return 0


def _file(text: str) -> Path:
    """matplotlib would add an ending, and the drawing lie elsewhere than it was said to."""
    file = Path(text)
    if not file.suffix:
        raise UserError(f"--plot {text}: its ending says what is drawn, such as {text}.svg")
    return file
