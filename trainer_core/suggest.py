"""The "did you mean" of every error about a name."""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Iterable

_WORD = 3  # letters, of which two words are to have the same at their beginning
_MOST = 3  # names; more would be no hint


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)`, or nothing where no known name is near.

    Near is what is spelled almost so; else what has these words among others, or some of them, or
    their first letters: `rate` and `lr` are near `learning_rate`; else what is spelled somewhat so.
    """
    plain = {each.lower().replace("-", "_"): each for each in known}
    given = name.lower().replace("-", "_")
    alike = functools.partial(difflib.get_close_matches, given, plain, n=1)
    near = alike(cutoff=0.8) or [each for each in plain if _shares_words(given, each)]
    if not 0 < len(near) <= _MOST:
        near = alike(cutoff=0.6)
    if not near:
        return ""
    return f" (did you mean {' or '.join(repr(plain[each]) for each in near)}?)"


def _shares_words(one: str, other: str) -> bool:
    """Whether each word of one begins a word of the other, or is the first letters of its words."""
    few, many = sorted((re.findall(r"[a-z0-9]+", each) for each in (one, other)), key=len)
    if few == ["".join(word[0] for word in many)]:
        return len(many) > 1
    return bool(few) and all(any(_begins(word, each) for each in many) for word in few)


def _begins(one: str, other: str) -> bool:
    length = min(len(one), len(other))
    return length >= _WORD and one[:length] == other[:length]


def in_tables(key: str) -> str:
    """Return ` (did you mean run.steps?)` for a key that was given without its table."""
    from trainer_core.config import load_config

    tables = load_config().table.items()
    key = key.replace("-", "_")
    found = [f"{table}.{key}" for table, settings in tables if key in settings]
    return f" (did you mean {' or '.join(found)}?)" if found else ""
