"""What a run directory was made with, to say what to install where that is gone."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from trainer_core.files import parsed
from trainer_core.installed import everything, normal


def made_with(directory: Path, table: str, use: str) -> str:
    """Return which package a run had for what its config names, and what installs it; nothing where
    that is not known, or the package is there.

    Args:
        directory: of the run.
        table: `optimizer`, or `plugins.NAME`.
        use: the name that nobody installed offers.
    """
    try:
        config: Any = tomllib.loads((directory / "config.toml").read_text(encoding="utf-8"))
        for part in table.split("."):
            config = config[part]
        origin = parsed((directory / "versions.json").read_bytes())["plugins"][table]
        is_same = config["use"] == use
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    package = re.fullmatch(r"([\w.-]+) (\d[\w.+!-]*)", str(origin))
    if not (package and is_same) or _is_installed(package[1]):
        return ""
    return (
        f"; the run in {directory} was made with it, from {origin}: "
        f"`pip install {package[1]}=={package[2]}`"
    )


def _is_installed(package: str) -> bool:
    return any(normal(entry.package.name) == normal(package) for entry in everything().entries)
