"""Train a recipe to compare it: as its own process, as a person would."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from trainer_checkpoint.comparing.stop_at import StopAt
from trainer_core.cli.waiting import waiting
from trainer_core.errors import RunError, UserError

STOPPING = "plugins.stop_at"


def check_recipes(recipes: Sequence[str], overrides: Sequence[str]) -> None:
    """Find a mistake in one recipe before the other is trained.

    Raises:
        UserError: what is wrong.
    """
    for recipe in recipes:
        _trainer(recipe, "explain", "config", recipe, *overrides)


def train(recipe: str, directory: Path, overrides: Sequence[str], last: int | None) -> None:
    """Train a recipe in a directory of its own, each step reported.

    Two in one process would share what they import: recipes from two folders that both have a
    `model.py` would be one model, compared with itself.

    Args:
        recipe: what to train.
        directory: of the run.
        overrides: `KEY=VALUE`.
        last: the step after which it stops; None: that of the recipe.

    Raises:
        UserError: a mistake in the recipe.
        RunError: the run failed.
    """
    own = [f"run.directory={json.dumps(str(directory))}", "run.log_every=1", "plugins.jsonl=true"]
    if last is not None:
        use = json.dumps(f"{StopAt.__module__}:{StopAt.__name__}")
        own.append(f"{STOPPING}={{use = {use}, step = {last}}}")
    with waiting(f"training {recipe}"):
        _trainer(recipe, "train", recipe, *overrides, *own, "--quiet")


def _trainer(recipe: str, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "trainer_core", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        said = done.stderr.strip().removeprefix("error: ") or f"ended with {done.returncode}"
        kind = UserError if done.returncode == UserError.exit_code else RunError
        raise kind(said if recipe in said else f"{recipe}: {said}")
