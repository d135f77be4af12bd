"""`trainer explain config`: every key, its value, where that came from, and what it means."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import attrs

from trainer_core.cli.plugin_settings import meaning
from trainer_core.settings import setting_fields, shown
from trainer_core.terminal.output import say
from trainer_core.terminal.page import Page, Part, wrapped

if TYPE_CHECKING:
    from trainer_core.config import Config

_VALUE = 22  # characters of a line of it, where words are no longer


@attrs.frozen
class Key:
    """One key of a resolved config; `value` is None where it is not set."""

    name: str
    value: Any
    unit: str
    origin: str
    meaning: str


@attrs.frozen
class Table:
    """One table: whose it is, and its keys; none where it is switched off."""

    name: str
    owner: str
    keys: tuple[Key, ...]


def explain(config: Config, as_json: bool) -> None:
    """Print every key of a config.

    Args:
        config: a resolved one.
        as_json: print one JSON object, dotted key to what is known of it.
    """
    found = list(tables(config))
    if as_json:
        say(json.dumps(_as_json(found), indent=2))
        return
    page = Page()
    for notice in config.notices:
        page.rows([("note", notice)], style="yellow")
    widths = page.widths([_cells(key) for table in found for key in table.keys], indent=2)
    for table in found:
        page.line()
        heading = (f"[{table.name}]", table.owner)
        page.cells([(heading[0], "bold"), (heading[1], "dim")], page.widths([heading]))
        for key in table.keys:
            page.cells(_styled(key), widths, indent=2)


def tables(config: Config) -> Iterator[Table]:
    """Yield the tables of a config, the core's own ones first."""
    from importlib.metadata import version

    core = f"trainer-core {version('trainer-core')}"
    for name, settings in (("run", config.run), ("distributed", config.distributed)):
        yield Table(name, core, tuple(_keys(config, name, settings)))
    for name, chosen in config.chosen.items():
        candidate = chosen.candidate
        use = Key(
            "use", candidate.name, "", config.origins[f"{name}.use"], "the plugin that answers"
        )
        owner = candidate.origin if candidate.distribution else f"your own {candidate.target}"
        yield Table(name, owner, (use, *_keys(config, name, chosen.plugin)))
    for name, given in config.table.get("plugins", {}).items():
        if given is False:
            place = config.origins[f"plugins.{name}"]
            yield Table(f"plugins.{name}", f"switched off ({place})", ())


def _keys(config: Config, table: str, settings: Any) -> Iterator[Key]:
    values: Any = config.table
    for part in table.split("."):
        values = values[part]
    for name, field in setting_fields(type(settings)).items():
        yield Key(
            name=name,
            value=values.get(name),
            unit=str(field.metadata.get("unit", "")),
            origin=config.origins.get(f"{table}.{name}", "default"),
            meaning=meaning(field),
        )


def _cells(key: Key) -> tuple[str, ...]:
    value = "\n".join(wrapped(_written(key), _VALUE))
    return key.name, value, key.origin, key.meaning


def _styled(key: Key) -> list[Part]:
    is_default = key.origin == "default" or key.origin.startswith("preset ")
    value = "dim" if key.value is None else "" if is_default else "bold"
    styles = ("cyan", value, "dim" if is_default else "bold", "")
    return list(zip(_cells(key), styles, strict=True))


def _written(key: Key) -> str:
    """The value as a config would write it, a table's entries each on a line, and its unit."""
    if key.value is None:
        return "not set"
    if isinstance(key.value, dict):
        return "\n".join(f"{name} = {shown(each)}" for name, each in key.value.items()) or "{}"
    unit = key.unit[:-1] if key.value == 1 and key.unit.endswith("s") else key.unit
    return f"{shown(key.value)} {unit}".rstrip()


def _as_json(found: list[Table]) -> dict[str, Any]:
    return {
        f"{table.name}.{key.name}": {
            "value": key.value,
            "unit": key.unit,
            "from": key.origin,
            "owner": table.owner,
            "meaning": key.meaning,
        }
        for table in found
        for key in table.keys
    }
