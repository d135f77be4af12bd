"""One of the two runs that are compared, as it stands on disk; or a log of other code."""

from __future__ import annotations

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
from trainer_core.files import parsed
from trainer_core.recipe import flatten
from trainer_core.settings import shown

LOG = ".jsonl"  # how the name of a log of other code ends
# What a run is called, and what shows it, is no part of what it does.
_UNCOMPARED = ("run.name", "run.directory", "plugins.progress", STOPPING)


@attrs.frozen(kw_only=True)
class Side:
    """One run.

    Attributes:
        name: as it was typed.
        directory: of the run, or of the log.
        metrics: by step.
        saved: the steps of its checkpoints, ascending.
        settings: dotted key to value as text, of its config and of the versions it ran on; empty
            where it is only a log.
        planned: `run.steps`; 0 likewise.
    """

    name: str
    directory: Path
    metrics: Mapping[int, Mapping[str, float]]
    saved: tuple[int, ...] = ()
    settings: Mapping[str, str] = {}
    planned: int = 0

    @property
    def step(self) -> int:
        """The last of those that are compared; 0 where there is none."""
        return max([0, *self.metrics, *self.saved])


def read_side(name: str, path: Path, last: int | None) -> Side:
    """Read what a run wrote.

    Args:
        name: what to call it.
        path: the run's directory; or a log of other code, lines like those of `metrics.jsonl`.
        last: the last step to read; None: all of them.

    Raises:
        UserError: it is no such thing, or nothing was trained in it.
    """
    if path.suffix == LOG:
        if not path.is_file():
            raise UserError(f"there is no log {path}")
        return Side(name=name, directory=path.parent, metrics=_metrics(path, last))
    recipe = recipe_of(path)
    try:
        config = tomllib.loads(recipe.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{recipe} cannot be read: {error}") from error
    log, saved = path / "metrics.jsonl", steps(path / "checkpoints")
    if not log.exists() and not saved:
        raise UserError(f"{path} has no metrics.jsonl and no checkpoints: it made no step yet")
    return Side(
        name=name,
        directory=path,
        metrics=_metrics(log, last),
        saved=tuple(step for step in saved if last is None or step <= last),
        settings=_settings(config) | _versions(path),
        planned=config.get("run", {}).get("steps", 0),
    )


def differing_settings(a: Side, b: Side) -> dict[str, tuple[str, str]]:
    """Return the keys whose values differ, with both of them; none beside a log."""
    if not a.settings or not b.settings:
        return {}
    keys = sorted({*a.settings, *b.settings})
    both = {key: tuple(each.settings.get(key, "(not set)") for each in (a, b)) for key in keys}
    return {key: (first, second) for key, (first, second) in both.items() if first != second}


def _metrics(log: Path, last: int | None) -> dict[int, dict[str, float]]:
    found = read_metrics(log)
    return {step: each for step, each in found.items() if last is None or step <= last}


def _settings(config: Mapping[str, Any]) -> dict[str, str]:
    return {
        key: shown(value)
        for key, value in flatten(config)
        if not f"{key}.".startswith(tuple(f"{name}." for name in _UNCOMPARED))
    }


def _versions(directory: Path) -> dict[str, str]:
    try:
        found = parsed((directory / "versions.json").read_bytes())
        return {f"versions.{name}": str(each) for name, each in found["stack"].items()}
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return {}  # it says nothing of the run that config.toml does not
