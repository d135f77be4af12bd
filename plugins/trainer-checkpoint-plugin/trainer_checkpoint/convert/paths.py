"""Paths of arrays: keys joined by `/`, some of which are the number of a layer."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

_NUMBERED = re.compile(r"(?:(?P<name>.*\D)_)?(?P<number>\d+)")


def in_order(path: str) -> tuple[tuple[str, int], ...]:
    """Return a sort key by which layer 10 comes after layer 9."""
    return tuple(_split(key) for key in path.split("/"))


def spelled(path: str) -> str:
    """Return the path with `layers/0` for `layers_0`: the two mean the same."""
    keys: list[str] = []
    for key in path.split("/"):
        found = _NUMBERED.fullmatch(key)
        keys += [each for each in found.group("name", "number") if each] if found else [key]
    return "/".join(keys)


def without_number(path: str) -> Iterator[tuple[str, int]]:
    """Yield, for each number in a path, the path without it, and the number."""
    keys = path.split("/")
    for at, key in enumerate(keys):
        found = _NUMBERED.fullmatch(key)
        if found:
            name = [found["name"]] if found["name"] else []
            yield "/".join([*keys[:at], *name, *keys[at + 1 :]]), int(found["number"])


def numbered(path: str) -> list[tuple[str, ...]]:
    """Return, for each number in a path, what paths that differ in nothing else have in common."""
    keys = path.split("/")
    found = [_NUMBERED.fullmatch(key) for key in keys]
    return [
        (*keys[:at], each["name"] or "", "#", *keys[at + 1 :])
        for at, each in enumerate(found)
        if each
    ]


def pattern_of(paths: Sequence[str]) -> str:
    """Return one text for several paths: `layer_{0..11}/attn/{q,k,v}/kernel` if of one form."""
    rows = [path.split("/") for path in paths]
    if len({len(row) for row in rows}) > 1:
        return ", ".join(paths)
    return "/".join(_common(list(dict.fromkeys(column))) for column in zip(*rows, strict=True))


def _common(keys: list[str]) -> str:
    if len(keys) == 1:
        return keys[0]
    found = [_NUMBERED.fullmatch(key) for key in keys]
    numbers = [int(each["number"]) for each in found if each]
    names = {each["name"] for each in found if each}
    first = numbers[0] if numbers else 0
    if len(names) == 1 and numbers == list(range(first, first + len(keys))):
        name = names.pop()
        return f"{name}_" * bool(name) + f"{{{first}..{numbers[-1]}}}"
    return f"{{{','.join(keys)}}}"


def _split(key: str) -> tuple[str, int]:
    found = _NUMBERED.fullmatch(key)
    return (key, -1) if found is None else (found["name"] or "", int(found["number"]))
