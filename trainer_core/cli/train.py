"""`trainer train`: train, or go on."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trainer_core.errors import UserError

if TYPE_CHECKING:
    from trainer_core.cli.failures import Context
    from trainer_core.cli.parsing import Parser
    from trainer_core.loop import Result


def configure(parser: Parser) -> None:
    """Declare the arguments."""
    add_recipe(parser)
    parser.add_argument(
        "--accept-changes",
        action="store_true",
        help="go on with a run though its config has changed",
    )
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object for each reported step"
    )
    parser.examples = [
        ("trainer train", "the tiny preset, on Python's own standard library"),
        ("trainer train run.steps=2000 run.name=long", "the same for longer, as another run"),
        ("trainer train recipe.toml optimizer.use=sgd", "what a recipe says, but for one key"),
        ("trainer explain config", "every key that can be set"),
    ]


def run(arguments: Namespace, context: Context) -> int:
    """Train, and show how it ended."""
    from trainer_core.config import load_config
    from trainer_core.loop import train

    recipe, overrides = split(arguments.settings)
    if arguments.quiet or arguments.json:
        overrides.append(f"plugins.progress.style={'json' if arguments.json else 'quiet'}")
    config = load_config(recipe, overrides)
    context.directory = config.directory
    result = train(config, arguments.accept_changes)
    if not (arguments.quiet or arguments.json):
        _show(result)
    return 0


def add_recipe(parser: Parser) -> None:
    """Declare `[RECIPE.toml] [KEY=VALUE ...]`."""
    parser.add_argument(
        "settings",
        metavar="RECIPE.toml KEY=VALUE",
        nargs="*",
        help="a recipe, and settings that come before it: model.layers=12",
    )


def split(settings: Sequence[str]) -> tuple[Path | None, list[str]]:
    """Return the recipe and the overrides among what was typed.

    Raises:
        UserError: an argument is neither, or there are two recipes.
    """
    recipe: Path | None = None
    overrides = []
    for text in settings:
        if "=" in text:
            overrides.append(text)
            continue
        path = Path(text)
        if recipe is not None:
            raise UserError(
                f"there can be one recipe, and {str(recipe)!r} and {text!r} are given; a recipe "
                f'can build on another: base = "other.toml"'
            )
        if path.is_dir():
            raise UserError(f"{text!r} is a folder; give a recipe, a .toml file")
        if not path.exists() and path.suffix != ".toml":
            raise UserError(
                f"{text!r} is neither KEY=VALUE nor a file; to set a key: run.steps=100"
            )
        recipe = path
    return recipe, overrides


def _show(result: Result) -> None:
    if result.program is None:
        print("stopped before training began; nothing was written")
    elif result.stopped:
        print(f"stopped by {result.stopped} after step {result.step}; the same command goes on")
    else:
        print(f"done: {result.step} steps, in {result.directory}")
