"""The settings of one plugin: each key's type, default, unit and meaning."""

from __future__ import annotations

import inspect
import json
import types
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

import attrs

from trainer_core.errors import UserError
from trainer_core.settings import setting_fields, shown
from trainer_core.suggest import did_you_mean
from trainer_core.terminal.output import say
from trainer_core.terminal.page import Page

if TYPE_CHECKING:
    from trainer_core.registry import Candidate

_TYPES = {int: "integer", float: "number", str: "string", bool: "true/false", Path: "path"}


@attrs.frozen
class Described:
    """One setting, in words; what is not known or does not apply is empty.

    Attributes:
        default: as a config would write it; `needed` where there is none.
    """

    key: str
    type: str
    default: str
    unit: str
    meaning: str


def show(name: str, as_json: bool) -> None:
    """Print the settings of the plugins that have this name.

    Args:
        name: a registered name, `distribution:name`, or `package.module:Class`.
        as_json: print one JSON object.

    Raises:
        UserError: there is none, or it cannot be imported.
    """
    from trainer_core.registry import load

    found = [(candidate, load(candidate, f"trainer plugins {name}")) for candidate in _named(name)]
    if as_json:
        plugins = [
            {
                "slot": candidate.slot.name,
                "name": candidate.name,
                "target": candidate.target,
                "settings": [attrs.asdict(each) for each in described(cls)],
            }
            for candidate, cls in found
        ]
        say(json.dumps({"plugins": plugins}, indent=2))
        return
    page = Page()
    for index, (candidate, cls) in enumerate(found):
        if index:
            page.line()
        _show(page, candidate, cls)


def described(cls: type[Any]) -> Iterator[Described]:
    """Yield the settings of a plugin's class."""
    preset = cls.preset_defaults({})[0] if hasattr(cls, "preset_defaults") else {}
    for key, field in setting_fields(cls).items():
        yield Described(
            key=key,
            type=_type(field.type),
            default=_default(field, preset.get(key)),
            unit=field.metadata.get("unit", ""),
            meaning=meaning(field),
        )


def meaning(field: attrs.Attribute[Any]) -> str:
    """Return what a setting means, with its choices where the words do not name them."""
    text = str(field.metadata.get("help", ""))
    choices = field.metadata.get("choices", ())
    if not all(choice in text for choice in choices):
        text += f" ({', '.join(choices[:-1])} or {choices[-1]})"
    return text.strip()


def _show(page: Page, candidate: Candidate, cls: type[Any]) -> None:
    table = f"plugins.{candidate.name}" if candidate.slot.name == "plugins" else candidate.slot.name
    page.line(
        (f"[{table}]", "bold"), f' use = "{candidate.name}"', (f"  {_from(candidate)}", "dim")
    )
    about = inspect.getdoc(cls)
    if about and "__doc__" in vars(cls):
        page.line()
        page.rows([("", about.split("\n\n")[0].replace("\n", " "))], left=2)
    page.line()
    settings = list(described(cls))
    if not settings:
        page.line("  it has no settings")
        return
    page.table(
        ("key", "type", "default", "unit", "meaning"),
        [(each.key, each.type, each.default, each.unit, each.meaning) for each in settings],
        indent=2,
    )


def _named(name: str) -> list[Candidate]:
    from trainer_core.imports import search_in
    from trainer_core.registry import PLUGINS, SLOTS, Candidate, candidates

    offered = [each for slot in (*SLOTS.values(), PLUGINS) for each in candidates(slot)]
    distribution, _, short = name.rpartition(":")
    found = [
        each for each in offered if each.name == short and distribution in ("", each.distribution)
    ]
    if found:
        return found
    if ":" in name:
        search_in(Path.cwd())
        return [Candidate(PLUGINS, name, name)]
    names = sorted({each.name for each in offered})
    raise UserError(
        f"no installed package offers {name!r}{did_you_mean(name, names)}; "
        f"there are: {', '.join(names)}"
    )


def _from(candidate: Candidate) -> str:
    return candidate.origin if candidate.distribution else ""


def _type(wanted: Any) -> str:
    if wanted in _TYPES:
        return _TYPES[wanted]
    origin, args = get_origin(wanted), get_args(wanted)
    if origin in (Union, types.UnionType):
        return " or ".join(_type(each) for each in args if each is not type(None))
    if origin is Literal:
        return " or ".join(map(shown, args))
    if origin in (list, tuple):
        return "list"
    return "table" if origin is dict or wanted is dict else ""


def _default(field: attrs.Attribute[Any], preset: Any) -> str:
    default: Any = field.default
    if default is attrs.NOTHING:
        return "needed"
    factory = getattr(default, "factory", None)
    if factory is not None:
        default = preset if default.takes_self else factory()
    value = preset if default is None else default
    if value is None:
        return "not set"
    return "{...}" if isinstance(value, dict) and len(shown(value)) > 20 else shown(value)
