"""Which arrays of the model go together, by their names: by the rules, or by themselves."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import attrs

from trainer_checkpoint.convert.mapping import LAYER, PART, Rule, fields
from trainer_checkpoint.convert.paths import in_order
from trainer_checkpoint.convert.targets import Link, Targets


@attrs.define
class Links:
    """What was found.

    Attributes:
        found: what goes together.
        dropped: names that a rule drops.
        wrong: a name, and why its rule, or its number, cannot be followed.
        used: the rules that decided about a name, by their place in the mapping.
    """

    found: list[Link] = attrs.field(factory=list)
    dropped: list[str] = attrs.field(factory=list)
    wrong: list[tuple[str, str]] = attrs.field(factory=list)
    used: set[int] = attrs.field(factory=set)


def link(
    names: Iterable[str],
    targets: Targets,
    rules: Iterable[Rule],
    short: Mapping[str, str] | None = None,
) -> Links:
    """Find the target of every name; one that has none is in no link.

    Args:
        names: of the source's arrays.
        targets: those of the other side.
        rules: the first that matches a name decides.
        short: names without the collection of a buffer; a rule sees the whole name.
    """
    links, rules = Links(), tuple(rules)
    ruled: dict[tuple[int, tuple[str, ...]], list[tuple[re.Match[str], str]]] = {}
    alone = []
    for name in sorted(names, key=in_order):
        index, match = _first_match(name, rules)
        if match is None:
            alone.append(name)
            continue
        links.used.add(index)
        if rules[index].drop:
            links.dropped.append(name)
        else:
            ruled.setdefault((index, _filled(rules[index], match)), []).append((match, name))
    for (index, filled), members in ruled.items():
        _by_rule(rules[index], filled, members, targets, links)
    _by_themselves(alone, targets, short or {}, links)
    _check_taken_once(links)
    return links


def _first_match(name: str, rules: tuple[Rule, ...]) -> tuple[int, re.Match[str] | None]:
    for index, rule in enumerate(rules):
        match = rule.pattern.fullmatch(name)
        if match:
            return index, match
    return -1, None


def _filled(rule: Rule, match: re.Match[str]) -> tuple[str, ...]:
    groups = {name: text or "" for name, text in match.groupdict().items()}
    groups.setdefault(LAYER, f"{{{LAYER}}}")  # one that is to be unstacked has no number yet
    return tuple(template.format(**groups) for template in rule.templates)


def _by_rule(
    rule: Rule,
    filled: tuple[str, ...],
    members: list[tuple[re.Match[str], str]],
    targets: Targets,
    links: Links,
) -> None:
    sources = _ordered(rule, members, links)
    if sources is None:
        return
    if rule.unstacks:
        numbers = _numbers_of(filled[0], targets)
        names = tuple(_with_layer(each, number) for number in numbers for each in filled)
        made = Link(sources, names, rule, unstacked=len(numbers), axis=rule.stack_axis)
        filled = names or filled
    elif rule.stacks:
        layers = len({match[LAYER] for match, _ in members})
        axis = targets.axes.get(filled[0]) or 0
        made = Link(sources, filled, rule, stacked=layers, axis=axis)
    else:
        made = Link(sources, filled, rule)
    absent = [name for name in filled if name not in targets.axes]
    if absent:
        why = f"{rule.place} sends it to {absent[0]}, which is not there"
        links.wrong += [(name, why) for name in sources]
    else:
        links.found.append(made)


def _ordered(
    rule: Rule, members: list[tuple[re.Match[str], str]], links: Links
) -> tuple[str, ...] | None:
    """Return the names layer by layer, part by part; None where that is not possible."""
    parts = rule.fuse.parts if rule.fuse else ("",)
    stacks = rule.stacks
    places: dict[tuple[int, str], str] = {}
    why = ""
    for match, name in members:
        layer = match[LAYER] if stacks else "0"
        part = match[PART] if rule.fuse else ""
        if not (layer or "").isdigit():
            why = f"{rule.place}: its layer is {layer!r}, which is no number"
        elif part not in parts:
            why = f"{rule.place}: its part is {part!r}, which is none of {', '.join(parts)}"
        elif (int(layer), part) in places:
            why = f"{rule.place} sends {places[int(layer), part]} to the same target"
        else:
            places[int(layer), part] = name
            continue
        links.wrong.append((name, why))
    layers = sorted({layer for layer, _ in places})
    wanted = [(layer, part) for layer in _all_between(layers) for part in parts]
    absent = [place for place in wanted if place not in places]
    if absent:
        what = " ".join(([f"layer {absent[0][0]}"] if stacks else []) + [absent[0][1]]).strip()
        why = f"{rule.place}: {what} is missing beside it"
        links.wrong += [(name, why) for name in places.values()]
    return None if why else tuple(places[place] for place in wanted)


def _by_themselves(
    names: list[str], targets: Targets, short: Mapping[str, str], links: Links
) -> None:
    buffers = targets.of_buffers()
    stacks: dict[str, list[tuple[int, str]]] = {}
    for name in names:
        found = targets.find(name, name)
        if found is None and name in short:
            found = buffers.find(short[name], name)
        if isinstance(found, Link):
            links.found.append(found)
        elif found is not None:
            stacks.setdefault(found[0], []).append((found[1], name))
    for form, layers in stacks.items():
        _stack(form, sorted(layers), targets, links)


def _stack(form: str, layers: list[tuple[int, str]], targets: Targets, links: Links) -> None:
    numbers = [number for number, _ in layers]
    absent = [number for number in _all_between(numbers) if number not in numbers]
    if absent or len(set(numbers)) < len(numbers):
        why = f"layer {absent[0]} is missing beside it" if absent else "there are two such layers"
        links.wrong += [(name, f"{form} stacks layers, and {why}") for _, name in layers]
        return
    sources = tuple(name for _, name in layers)
    axis = targets.axes[form] or 0
    links.found.append(Link(sources, (form,), stacked=len(layers), axis=axis))


def _check_taken_once(links: Links) -> None:
    taken: dict[str, Link] = {}
    for each in list(links.found):
        other = next((taken[name] for name in each.targets if name in taken), None)
        if other is not None:
            links.found.remove(each)
            why = f"its target {each.targets[0]} is that of {other.sources[0]} too"
            links.wrong += [(name, why) for name in each.sources]
        else:
            taken.update(dict.fromkeys(each.targets, each))


def _numbers_of(template: str, targets: Targets) -> list[int]:
    before, _, after = template.partition(f"{{{LAYER}}}")
    after = re.escape(after).replace(re.escape(f"{{{LAYER}}}"), r"\1")
    pattern = re.compile(f"{re.escape(before)}(\\d+){after}")
    return sorted(int(found[1]) for name in targets.axes if (found := pattern.fullmatch(name)))


def _with_layer(template: str, number: int) -> str:
    assert LAYER in fields(template)
    return template.replace(f"{{{LAYER}}}", str(number))


def _all_between(numbers: list[int]) -> range:
    return range(min(numbers, default=0), max(numbers, default=-1) + 1)
