"""The "did you mean" of every error about a name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)`, or nothing where no known name is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean {near[0]!r}?)" if near else ""


def in_tables(key: str) -> str:
    """Return ` (did you mean run.steps?)` for a key that was given without its table."""
    from trainer_core.config import load_config

    tables = load_config().table.items()
    key = key.replace("-", "_")
    found = [f"{table}.{key}" for table, settings in tables if key in settings]
    return f" (did you mean {' or '.join(found)}?)" if found else ""
