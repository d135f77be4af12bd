"""One of the two runs that are compared, as it stands on disk."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from trainer_checkpoint.comparing.training import STOPPING
from trainer_checkpoint.steps import steps
from trainer_core.cli.reading import recipe_of
from trainer_core.defaults.jsonl import read_metrics
from trainer_core.errors import UserError
from trainer_core.recipe import flatten
from trainer_core.settings import shown

# What a run is called, and what shows it, is no part of what it does.
_UNCOMPARED = ("run.name", "run.directory", "plugins.progress", STOPPING)


@attrs.frozen(kw_only=True)
class Side:
    """One run.

    Attributes:
        name: as it was typed.
        settings: dotted key to value as text, of its config and of the versions it ran on.
        metrics: by step.
        saved: the steps of its checkpoints, ascending.
        planned: `run.steps`.
    """

    name: str
    directory: Path
    settings: Mapping[str, str]
    metrics: Mapping[int, Mapping[str, float]]
    saved: tuple[int, ...]
    planned: int

    @property
    def step(self) -> int:
        """The last that is on disk."""
        return max([*self.metrics, *self.saved])


def read_side(name: str, directory: Path, last: int | None) -> Side:
    """Read what a run wrote.

    Args:
        name: what to call it.
        directory: of the run.
        last: the last step to read; None: all of them.

    Raises:
        UserError: it is no run directory, or nothing was trained in it.
    """
    recipe = recipe_of(directory)
    try:
        config = tomllib.loads(recipe.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{recipe} cannot be read: {error}") from error
    metrics, saved = read_metrics(directory / "metrics.jsonl"), steps(directory / "checkpoints")
    if not metrics and not saved:
        raise UserError(f"{directory} has no metrics.jsonl and no checkpoints: it made no step yet")
    return Side(
        name=name,
        directory=directory,
        settings=_settings(config) | _versions(directory),
        metrics={step: each for step, each in metrics.items() if last is None or step <= last},
        saved=tuple(step for step in saved if last is None or step <= last),
        planned=config["run"]["steps"],
    )


def differing_settings(a: Side, b: Side) -> dict[str, tuple[str, str]]:
    """Return the keys whose values differ, with both of them."""
    keys = sorted({*a.settings, *b.settings})
    both = {key: tuple(each.settings.get(key, "(not set)") for each in (a, b)) for key in keys}
    return {key: (first, second) for key, (first, second) in both.items() if first != second}


def _settings(config: Mapping[str, Any]) -> dict[str, str]:
    return {
        key: shown(value)
        for key, value in flatten(config)
        if not f"{key}.".startswith(tuple(f"{name}." for name in _UNCOMPARED))
    }


def _versions(directory: Path) -> dict[str, str]:
    try:
        found = json.loads((directory / "versions.json").read_text())
        return {f"versions.{name}": str(each) for name, each in found["stack"].items()}
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return {}  # it says nothing of the run that config.toml does not
