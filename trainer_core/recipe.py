"""Read recipes: TOML files that build on others, overrides, and where each key was written."""

from __future__ import annotations

import datetime
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from trainer_core.errors import UserError
from trainer_core.suggest import in_tables

Table = dict[str, Any]
_KEY = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")


@attrs.frozen
class Layer:
    """One source of settings; a later layer overrides an earlier one.

    Attributes:
        label: the file, or "command line".
        table: its values.
        lines: for a file, the line of each dotted key.
    """

    label: str
    table: Table
    lines: Mapping[str, int] = attrs.field(factory=dict)

    def given(self, key: str) -> Any:
        """Return the value of a dotted key; None where it has none."""
        value: Any = self.table
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value

    def place(self, key: str) -> str:
        """Return where a dotted key stands: `recipe.toml:12`."""
        while key and key not in self.lines:
            key = key.rpartition(".")[0]
        return f"{self.label}:{self.lines[key]}" if key else self.label


def layers(recipe: Path | Mapping[str, Any] | None, overrides: Sequence[str] = ()) -> list[Layer]:
    """Return the layers of a config, the most general first.

    Args:
        recipe: a TOML file, whose `base = "other.toml"` is followed; or a dict.
        overrides: `KEY=VALUE`, the value as TOML; a bare word is a string.

    Raises:
        UserError: a file that is missing, broken, or its own base; an override that is no
            `KEY=VALUE`.
    """
    found: list[Layer] = []
    if isinstance(recipe, Mapping):
        found.append(Layer("config", _copy(recipe)))
    elif recipe is not None:
        found.extend(_file_layers(recipe, ()))
    found.extend(_override(text) for text in overrides)
    return found


def flatten(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) for every leaf; an empty table is a leaf."""
    for key, value in table.items():
        dotted = f"{prefix}.{key}" if prefix else key
        if isinstance(value, Mapping) and value:
            yield from flatten(value, dotted)
        else:
            yield dotted, value


def merge(tables: Sequence[Mapping[str, Any]]) -> Table:
    """Return one table, in which later ones win; tables inside are merged too."""
    merged: Table = {}
    for table in tables:
        for key, value in table.items():
            old = merged.get(key)
            if isinstance(old, dict) and isinstance(value, Mapping):
                merged[key] = merge([old, value])
            else:
                merged[key] = _copy(value) if isinstance(value, Mapping) else value
    return merged


def _file_layers(path: Path, children: tuple[Path, ...]) -> list[Layer]:
    asked_by = f" (base of {children[-1]})" if children else ""
    if path.resolve() in [child.resolve() for child in children]:
        raise UserError(f"{children[-1]}: base = {str(path)!r} leads back to itself")
    try:
        text = path.read_text(encoding="utf-8-sig")  # Notepad puts a mark before it
    except FileNotFoundError:
        near = sorted(str(each) for each in path.parent.glob("*.toml"))
        hint = f"; in that folder: {', '.join(near)}" if near else ""
        raise UserError(f"there is no recipe {path}{asked_by}{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the recipe {path}{asked_by} cannot be read: {error}") from None
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        reason, at, position = str(error).partition(" (at line ")
        line = position.partition(",")[0] if at and "," in position else len(text.splitlines())
        raise UserError(f"{path}:{line} is not valid TOML: {reason}") from None
    layer = Layer(str(path), table, key_lines(text))
    base = table.pop("base", None)
    if base is None:
        return [layer]
    if not isinstance(base, str):
        raise UserError(f"base = {base!r} ({layer.place('base')}): expected the path of a recipe")
    return [*_file_layers(path.parent / base, (*children, path)), layer]


def key_lines(text: str) -> dict[str, int]:
    """Return the line on which each key of a TOML text begins.

    tomllib keeps no positions. But the shortest run of leading lines that parses and holds a key
    ends where that key's value ends, and begins one line after the longest that parses without
    it: exact for every way TOML has of writing a key.
    """
    lines: dict[str, int] = {}
    parsed_to = 0
    source = text.splitlines(keepends=True)
    for count in range(1, len(source) + 1):
        try:
            table = tomllib.loads("".join(source[:count]))
        except tomllib.TOMLDecodeError:
            continue
        for key, _ in flatten(table):
            while key:
                lines.setdefault(key, parsed_to + 1)
                key = key.rpartition(".")[0]
        parsed_to = count
    return lines


def _override(text: str) -> Layer:
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not _KEY.fullmatch(key):
        raise UserError(f"{text!r} on the command line: expected KEY=VALUE, such as run.steps=100")
    parsed = _toml_value(value)
    table: Any = parsed
    for part in reversed(key.split(".")):
        table = {part: table}
    if "." not in key and not isinstance(parsed, (dict, bool)):
        hint = in_tables(text.partition("=")[0])
        raise UserError(f"{text!r} on the command line: expected TABLE.KEY=VALUE{hint}")
    return Layer("command line", table)


def _toml_value(text: str) -> Any:
    try:
        table = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    value = table["value"]
    # A bare 2026-11-24 or 12:30 is meant as a word: no setting is a date.
    dated = isinstance(value, (datetime.date, datetime.time))
    return text if dated or len(table) > 1 else value


def _copy(table: Mapping[str, Any]) -> Table:
    return {
        key: _copy(value) if isinstance(value, Mapping) else value for key, value in table.items()
    }
