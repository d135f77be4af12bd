"""`[RECIPE.toml] [KEY=VALUE ...]`, as several commands take it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trainer_core.errors import UserError

if TYPE_CHECKING:
    from trainer_core.cli.parsing import Parser


def add_settings(parser: Parser) -> None:
    """Declare the recipe and the overrides."""
    parser.add_argument(
        "settings",
        metavar="RECIPE.toml KEY=VALUE",
        nargs="*",
        default=[],
        help="a recipe, and what to set otherwise, such as model.layers=12",
    )


def topology_argument(parser: Parser, what: str) -> None:
    """Declare `--topology`."""
    parser.add_argument(
        "--topology",
        metavar="DEVICES",
        help=f"{what}, which need not be there: v5e:4x4, 2xv5e:4x4, gpu:h100x16, cpu:8; "
        "by default those that are here",
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
                f"there can be one recipe, and {str(recipe)!r} and {text!r} are given; one "
                f'can build on the other: base = "{recipe}"'
            )
        if path.is_dir():
            raise UserError(f"{text!r} is a folder; give a recipe, which is a .toml file")
        if not path.exists() and path.suffix != ".toml":
            raise UserError(
                f"{text!r} is neither KEY=VALUE, such as run.steps=100, nor a recipe: there is "
                f"no such file"
            )
        if path.suffix != ".toml":
            raise UserError(f"{text!r} is no recipe, which is a .toml file")
        recipe = path
    return recipe, overrides
