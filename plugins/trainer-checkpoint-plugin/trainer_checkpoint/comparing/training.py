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


def is_recipe(name: str) -> bool:
    return name.endswith(".toml")


def train_recipes(
    names: Sequence[str], overrides: Sequence[str], folder: Path, last: int | None
) -> list[Path]:
    """Train those of the names that are recipes, and return where each run is.

    Two in one process would share what they import: recipes from two folders that both have a
    `model.py` would be one model, compared with itself.

    Args:
        names: a recipe is trained, everything else is there.
        overrides: `KEY=VALUE`, for each recipe.
        folder: in which the runs are written, as A and B.
        last: the step after which they stop; None: that of the recipe.

    Raises:
        UserError: a mistake in one of the recipes; none was trained.
        RunError: a run failed.
    """
    for name in filter(is_recipe, names):
        _trainer(name, "explain", "config", name, *overrides)
    places = []
    for letter, name in zip("AB", names, strict=True):
        places.append(folder / letter if is_recipe(name) else Path(name))
        if is_recipe(name):
            _train(name, places[-1], overrides, last)
    return places


def _train(recipe: str, directory: Path, overrides: Sequence[str], last: int | None) -> None:
    own = [f"run.directory={json.dumps(str(directory))}", "run.log_every=1", "plugins.jsonl=true"]
    if last is not None:
        use = json.dumps(f"{StopAt.__module__}:{StopAt.__name__}")
        own.append(f"{STOPPING}={{use = {use}, step = {last}}}")
    with waiting(f"training {recipe}"):
        _trainer(recipe, "train", recipe, *overrides, *own, "--quiet")


def _trainer(recipe: str, *arguments: str) -> None:
    running = subprocess.Popen(
        [sys.executable, "-m", "trainer_core", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    said = ""
    with running:
        assert running.stderr is not None
        try:
            for line in running.stderr:
                if line.startswith("note: imports "):  # said before it does
                    print(line, end="", file=sys.stderr, flush=True)
                else:
                    said += line
        except BaseException:
            running.kill()
            raise
    if running.returncode:
        said = said.strip().removeprefix("error: ") or f"ended with {running.returncode}"
        kind = UserError if running.returncode == UserError.exit_code else RunError
        raise kind(said if recipe in said else f"{recipe}: {said}")
