"""From a config table to a settings object: strict types, known keys, errors with their place."""

from __future__ import annotations

import json
import math
import re
import tomllib
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin

import attrs
import cattrs

from trainer_core.errors import SettingError, UserError
from trainer_core.suggest import did_you_mean

Settings = TypeVar("Settings")
# Of float32: the smallest number in full precision, and the largest.
_SMALLEST, _LARGEST = 2.0**-126, (2 - 2.0**-23) * 2.0**127


@attrs.frozen
class Structured:
    """A settings object, with where each default came from that is not simply the class's."""

    instance: Any
    sources: Mapping[str, str]


def structure(
    cls: type[Any],
    table: Mapping[str, Any],
    title: str,
    place: Callable[[str], str],
    elsewhere: Callable[[str], str] = lambda key: "",
) -> Structured:
    """Make a settings object from a table.

    Args:
        cls: an attrs class; its fields with `init=True` are the settings.
        table: the keys that were given.
        title: of the table, such as `[optimizer]`.
        place: where a key was given: `recipe.toml:12`.
        elsewhere: a hint for a key that belongs to another table.

    Raises:
        UserError: an unknown or missing key, a wrong type, a value out of range.
    """
    fields = setting_fields(cls)
    for key in table:
        if key not in fields:
            hint = elsewhere(key) or did_you_mean(key, fields)
            known = ", ".join(fields) or "none"
            raise UserError(f"{title} has no setting {key!r} ({place(key)}){hint}; it has: {known}")
    derived, source = _derived(cls, table, title, place)
    values = {
        key: _convert(fields[key], value, title, place)
        for key, value in (derived | dict(table)).items()
        if value is not None
    }
    for key, field in fields.items():
        default = _default(field)
        if key in values and isinstance(default, dict) and isinstance(values[key], dict):
            values[key] = default | values[key]
        if default is attrs.NOTHING and key not in values:
            raise UserError(
                f"{title} needs {key}: {field.metadata.get('help', 'it must be given')}"
            )
    try:
        instance = cls(**{fields[key].alias or key: value for key, value in values.items()})
    except SettingError as error:
        raise _refused(error.key, table, str(error), title, place) from error
    except (ValueError, TypeError) as error:
        raise UserError(f"{title} {_message(error)}") from error
    return Structured(instance, {key: source for key in derived if key not in table})


def check_given(
    cls: type[Any], table: Mapping[str, Any], title: str, place: Callable[[str], str]
) -> None:
    """Check each value of a table by itself, whether or not another takes its place.

    Args:
        cls, table, title, place: as for `structure`; keys that are no settings are passed over.

    Raises:
        UserError: a wrong type, a value out of range.
    """
    fields = setting_fields(cls)
    for key, value in table.items():
        if key in fields and value is not None:
            _convert(fields[key], value, title, place)


def setting_fields(cls: type[Any]) -> dict[str, attrs.Attribute[Any]]:
    """Return the settings of a plugin's class, by key."""
    attrs.resolve_types(cls)
    return {field.name: field for field in attrs.fields(cls) if field.init}


def check_settings(cls: type[Any], what: str) -> None:
    """Refuse settings without a type, and defaults of another: config.toml would have them.

    Args:
        cls: a plugin's class.
        what: what names it, to begin an error with.

    Raises:
        UserError: each that is wrong.
    """
    try:
        fields = setting_fields(cls)
    except Exception as error:
        raise UserError(
            f"{what} has an attribute whose type cannot be read: {type(error).__name__}: {error}; "
            f"import the type, outside of `if TYPE_CHECKING`; Any will do where it is no setting"
        ) from error
    problems = []
    for key, field in fields.items():
        default = _default(field)
        if field.type is None:
            problems.append(f"the setting {key} needs a type: `{key}: float = setting(...)`")
        elif default is not None and default is not attrs.NOTHING:
            try:
                _converter.structure(_converter.unstructure(default), field.type)
            except Exception:
                expected = _expected(field.type) or f"a {field.type}"
                problems.append(f"the default of {key}, {shown(default)}, is not {expected}")
    if problems:
        raise UserError(f"{what}: {'; '.join(problems)}")


def values_of(instance: Any) -> dict[str, Any]:
    """Return a settings object as TOML values; what is None is left out."""
    values = {name: getattr(instance, name) for name in setting_fields(type(instance))}
    plain = {name: _converter.unstructure(value) for name, value in values.items()}
    return {name: value for name, value in plain.items() if value is not None}


def shown(value: Any) -> str:
    """Return a value as a config would write it."""
    if isinstance(value, Mapping):
        pairs = (f"{_key(key)} = {shown(each)}" for key, each in value.items())
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(shown, value)) + "]"
    if isinstance(value, (str, bool)):
        return json.dumps(value, ensure_ascii=False)
    return str(value)


def _derived(
    cls: type[Any], table: Mapping[str, Any], title: str, place: Callable[[str], str]
) -> tuple[dict[str, Any], str]:
    """Defaults that depend on what was given, such as a preset's numbers."""
    if not hasattr(cls, "preset_defaults"):
        return {}, ""
    fields = setting_fields(cls)
    given = {key: _convert(fields[key], value, title, place) for key, value in table.items()}
    try:
        defaults, source = cls.preset_defaults(given)
    except SettingError as error:
        raise _refused(error.key, table, str(error), title, place) from error
    return {key: value for key, value in defaults.items() if key not in table}, source


def _convert(
    field: attrs.Attribute[Any], value: Any, title: str, place: Callable[[str], str]
) -> Any:
    wanted = field.type if field.type is not None else Any
    try:
        converted = _converter.structure(value, wanted)
    except Exception as error:
        note = "" if _expected(wanted) else f": {'; '.join(cattrs.transform_error(error))}"
        expected = _expected(wanted) or "another value"
        quote = _quoting_hint(f"{title.strip('[]')}.{field.name}", value, field)
        raise UserError(
            f"{title} {field.name} = {shown(value)} ({place(field.name)}): "
            f"expected {expected}{quote}{note}"
        ) from None
    if field.validator is not None:
        try:
            field.validator(None, field, converted)
        except (ValueError, TypeError) as error:
            choices = field.metadata.get("choices", ())
            message = f"expected {' or '.join(map(shown, choices))}" if choices else _message(error)
            hint = did_you_mean(str(value), choices)
            raise UserError(
                f"{title} {field.name} = {shown(value)} ({place(field.name)}): {message}{hint}"
            ) from None
        except AttributeError:
            pass  # It wants the whole object, and gets it when that is made.
    return converted


def _refused(
    key: str, table: Mapping[str, Any], message: str, title: str, place: Callable[[str], str]
) -> UserError:
    given = f" = {shown(table[key])} ({place(key)})" if key in table else ""
    return UserError(f"{title} {key}{given}: {message}")


def _message(error: Exception) -> str:
    """What attrs says of a value, without the key and the value, which the error names before."""
    text = str(error.args[0]) if error.args else str(error)
    said = re.fullmatch(r"'\w+' (must be \S+ [^:]+): .*", text, re.DOTALL)
    return said.group(1) if said else text


def in_float32(_: Any, __: Any, value: float) -> None:
    """Refuse a number that float32 cannot hold, or takes for 0: an attrs validator."""
    size = abs(value)
    if size and not _SMALLEST <= size <= _LARGEST:
        raise ValueError(
            "must be a number that float32, in which it is computed with, can hold: "
            "between 1.2e-38 and 3.4e38 in size"
        )


def _default(field: attrs.Attribute[Any]) -> Any:
    default: Any = field.default
    factory = getattr(default, "factory", None)
    if factory is None:
        return default
    return None if default.takes_self else factory()


def _quoting_hint(key: str, value: Any, field: attrs.Attribute[Any]) -> str:
    wanted = field.type
    is_table = get_origin(wanted) is dict
    if isinstance(value, (int, float)) and str in _alternatives(wanted):
        return f""", in quotes: '"{value}"'"""
    if isinstance(value, str) and (closing := _unclosed(value)):
        return f"; its {closing} is missing"
    if isinstance(value, str) and "=" in value and is_table:
        # Of key={a=1,b=2} bash makes two arguments: key=a=1 and key=b=2.
        return f"; a shell takes braces apart that are not in quotes: '{key}={{{value}, ...}}'"
    table = _deepened(value, wanted, _example(field.metadata.get("help", "")))
    if is_table and _fits(table, wanted):
        return f", such as {shown(table)}"
    return ""


def _deepened(value: Any, wanted: Any, example: Any) -> Any:
    """A value, with a table around each part of it that should have stood in one.

    Its names are those of an example.
    """
    if get_origin(wanted) is not dict or len(get_args(wanted)) != 2:
        return value
    inner = get_args(wanted)[1]
    name, below = next(iter(example.items())) if isinstance(example, Mapping) else ("NAME", None)
    if not isinstance(value, Mapping):
        return {name: _deepened(value, inner, below)}
    return {key: _deepened(each, inner, below) for key, each in value.items()}


def _example(help: str) -> Any:
    """The table that the help of a setting ends with; None where there is none."""
    found = re.search(r"\{.*\}$", help)
    try:
        return tomllib.loads(f"value = {found[0]}")["value"] or None if found else None
    except tomllib.TOMLDecodeError:
        return None


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key, ensure_ascii=False)


def _unclosed(text: str) -> str:
    """Return the brace or bracket that a table or a list on the command line lacks, if any."""
    begun = text.strip()[:1]
    closing = {"{": "}", "[": "]"}.get(begun, "")
    return closing if closing and text.count(begun) > text.count(closing) else ""


def _alternatives(wanted: Any) -> tuple[Any, ...]:
    return get_args(wanted) if get_origin(wanted) in (Union, types.UnionType) else (wanted,)


def _fits(value: Any, wanted: Any) -> bool:
    try:
        _converter.structure(value, wanted)
    except Exception:
        return False
    return wanted is not Any


def _expected(wanted: Any) -> str:
    names: dict[Any, str] = {
        int: "a whole number",
        float: "a finite number",
        str: "a string",
        bool: "true or false",
        Path: "a path",
        type(None): "",
    }
    if wanted in names:
        return names[wanted]
    origin, args = get_origin(wanted), get_args(wanted)
    if origin in (Union, types.UnionType):
        return " or ".join(filter(None, map(_expected, args)))
    if origin is typing.Literal:
        return " or ".join(map(shown, args))
    if origin in (list, tuple) and args:
        return f"a list, each {_expected(args[0])}"
    if origin is dict or wanted is dict:
        inner = _expected(args[1]) if len(args) == 2 else ""
        return "a table" + (f" whose values are each {inner}" if inner else "")
    return ""


def _make_converter() -> cattrs.Converter:
    converter = cattrs.Converter(forbid_extra_keys=True)

    def exactly(cls: type[Any], *also: type[Any]) -> Callable[[Any, Any], Any]:
        def hook(value: Any, _: Any) -> Any:
            # bool is an int to Python, not to the author of a config.
            if isinstance(value, bool) != (cls is bool) or not isinstance(value, (cls, *also)):
                raise TypeError
            if isinstance(value, float) and not math.isfinite(value):
                raise TypeError
            return cls(value)

        return hook

    for cls, also in ((int, ()), (bool, ()), (str, ()), (float, (int,)), (Path, (str,))):
        converter.register_structure_hook(cls, exactly(cls, *also))

    def is_union(wanted: Any) -> bool:
        return get_origin(wanted) in (Union, types.UnionType)

    def union_hook(wanted: Any) -> Callable[[Any, Any], Any]:
        arms = get_args(wanted)

        def hook(value: Any, _: Any) -> Any:
            for arm in arms:
                if arm is type(None):
                    if value is None:
                        return None
                    continue
                try:
                    return converter.structure(value, arm)
                except Exception:
                    continue
            raise TypeError

        return hook

    converter.register_structure_hook_factory(is_union, union_hook)
    return converter


_converter = _make_converter()
