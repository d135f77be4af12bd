"""The mapping of names: a TOML file of ordered rules, the first that matches a path wins."""

from __future__ import annotations

import re
import string
import tomllib
from collections.abc import Mapping as Dict
from pathlib import Path
from typing import Any

import attrs

from trainer_core.errors import UserError
from trainer_core.suggest import did_you_mean

LAYER, PART = "layer", "part"  # groups of a pattern with a meaning of their own


@attrs.frozen
class Fusing:
    """Source arrays become one: the group `part` names them, `parts` says in which order."""

    axis: int
    parts: tuple[str, ...]


@attrs.frozen
class Splitting:
    """A source array becomes several: the targets, in order along the axis."""

    axis: int
    into: tuple[str, ...]


@attrs.frozen
class Rule:
    """What becomes of the arrays whose whole path matches a pattern.

    Attributes:
        pattern: a regular expression. Its group `layer` numbers layers, `part` names parts.
        to: the target path; `{name}` stands for a group. Where the pattern has a layer and
            `to` has not, the layers are stacked; where `to` alone has one, they are unstacked.
        transpose: the order of the axes of one layer.
        reshape: whether to take the target's shape.
        stack_axis: of a stacked source whose layers are to be unstacked.
        drop: leave the arrays out.
        place: where the rule stands, for messages.
    """

    pattern: re.Pattern[str]
    to: str = ""
    transpose: tuple[int, ...] = ()
    reshape: bool = False
    split: Splitting | None = None
    fuse: Fusing | None = None
    stack_axis: int = 0
    drop: bool = False
    place: str = ""

    @property
    def templates(self) -> tuple[str, ...]:
        return self.split.into if self.split else (self.to,)

    @property
    def stacks(self) -> bool:
        return LAYER in self.pattern.groupindex and not self._numbers_targets

    @property
    def unstacks(self) -> bool:
        return LAYER not in self.pattern.groupindex and self._numbers_targets

    @property
    def _numbers_targets(self) -> bool:
        return all(LAYER in fields(template) for template in self.templates)


@attrs.frozen
class Mapping:
    """What a mapping file says; without one, equal names go together.

    Attributes:
        rules: in order.
        prefix: what the paths of the source's parameters begin with; None: it is found out.
        cast: whether arrays may get another dtype.
        fresh: the run's own names that begin with first values, where nothing fills them.
    """

    rules: tuple[Rule, ...] = ()
    prefix: str | None = None
    cast: bool = False
    fresh: tuple[re.Pattern[str], ...] = ()


def load_mapping(path: Path | None) -> Mapping:
    """Read a mapping file; None: the mapping without rules.

    Raises:
        UserError: it cannot be read, or a rule in it makes no sense.
    """
    if path is None:
        return Mapping()
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"the mapping {path} cannot be read: {error}") from error
    _check_keys(table, ("rule", "prefix", "cast", "fresh"), str(path))
    rules = table.get("rule", [])
    if not isinstance(rules, list) or not all(isinstance(rule, dict) for rule in rules):
        raise UserError(f"{path}: rules are written as [[rule]]")
    prefix = table.get("prefix")
    if prefix is not None:
        prefix = _typed(table, "prefix", str, str(path)).rstrip("/") + "/"
    return Mapping(
        rules=tuple(_rule(rule, f"rule {at} of {path}") for at, rule in enumerate(rules, 1)),
        prefix=prefix,
        cast=_typed(table, "cast", bool, str(path)),
        fresh=_fresh(table, str(path)),
    )


def fields(template: str) -> set[str]:
    """Return the names in braces."""
    return {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}


def _fresh(table: Dict[str, Any], place: str) -> tuple[re.Pattern[str], ...]:
    listed = table.get("fresh", [])
    if not isinstance(listed, list) or not all(isinstance(each, str) for each in listed):
        raise UserError(f"{place}: fresh lists regular expressions: fresh = ['head/.*']")
    return tuple(_pattern(each, f"{place}: fresh") for each in listed)


def _pattern(text: str, place: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise UserError(f"{place} is no regular expression: {error}") from error


_KEYS = ("from", "to", "transpose", "reshape", "split", "fuse", "stack_axis", "drop")


def _rule(table: Dict[str, Any], place: str) -> Rule:
    _check_keys(table, _KEYS, place)
    pattern = _pattern(_typed(table, "from", str, place), f"{place}: from")
    if not pattern.pattern:
        raise UserError(f"{place} needs from = '…', a regular expression for the source's paths")
    rule = Rule(
        pattern=pattern,
        to=_typed(table, "to", str, place),
        transpose=_order(table, place),
        reshape=_typed(table, "reshape", bool, place),
        split=_splitting(table, place),
        fuse=_fusing(table, pattern, place),
        stack_axis=_typed(table, "stack_axis", int, place),
        drop=_typed(table, "drop", bool, place),
        place=place,
    )
    if rule.stack_axis < 0:
        raise UserError(f"{place}: stack_axis = {rule.stack_axis}: count from the front")
    if [bool(rule.to), rule.split is not None, rule.drop].count(True) != 1:
        raise UserError(f"{place} needs one of: to = '…', split = {{…}}, drop = true")
    if not rule.drop:
        _check_templates(rule)
    return rule


def _check_templates(rule: Rule) -> None:
    known = {*rule.pattern.groupindex, LAYER}
    for template in rule.templates:
        try:
            named = fields(template)
        except ValueError as error:
            raise UserError(f"{rule.place}: {template!r}: {error}") from error
        if named - known:
            name = sorted(named - known)[0]
            raise UserError(
                f"{rule.place}: {template!r} has {{{name}}}, and the pattern has no group of that "
                f"name: (?P<{name or 'name'}>…)"
            )
    if len({LAYER in fields(template) for template in rule.templates}) > 1:
        raise UserError(f"{rule.place}: {{layer}} stands in some of the targets, and not in all")


def _order(table: Dict[str, Any], place: str) -> tuple[int, ...]:
    order = table.get("transpose", [])
    if not isinstance(order, list) or sorted(map(str, order)) != sorted(
        str(axis) for axis in range(len(order))
    ):
        raise UserError(f"{place}: transpose is the new order of all axes, such as [1, 0]")
    return tuple(order)


def _splitting(table: Dict[str, Any], place: str) -> Splitting | None:
    if "split" not in table:
        return None
    axis, into = _cut(table["split"], "split", "into", place)
    return Splitting(axis, into)


def _fusing(table: Dict[str, Any], pattern: re.Pattern[str], place: str) -> Fusing | None:
    if "fuse" not in table:
        return None
    axis, parts = _cut(table["fuse"], "fuse", "parts", place)
    if PART not in pattern.groupindex:
        names = "|".join(parts)
        raise UserError(f"{place}: fuse needs a group for the part in from: (?P<part>{names})")
    return Fusing(axis, parts)


def _cut(table: Any, name: str, items: str, place: str) -> tuple[int, tuple[str, ...]]:
    form = f'{name} = {{axis = -1, {items} = ["…", "…"]}}'
    if not isinstance(table, dict):
        raise UserError(f"{place}: expected {form}")
    _check_keys(table, ("axis", items), f"{name} of {place}")
    listed = table.get(items)
    if not isinstance(listed, list) or not listed or not all(isinstance(x, str) for x in listed):
        raise UserError(f"{place}: expected {form}")
    return _typed({"axis": -1, **table}, "axis", int, f"{name} of {place}"), tuple(listed)


def _typed(table: Dict[str, Any], key: str, kind: type[Any], place: str) -> Any:
    value = table.get(key, kind())
    if type(value) is not kind:
        names = {str: "a string", bool: "true or false", int: "a whole number"}
        raise UserError(f"{place}: {key} = {value!r}: expected {names[kind]}")
    return value


def _check_keys(table: Dict[str, Any], known: tuple[str, ...], place: str) -> None:
    for key in table:
        if key not in known:
            hint = did_you_mean(key, known)
            raise UserError(f"{place} has no key {key!r}{hint}; there are: {', '.join(known)}")
