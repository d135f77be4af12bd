"""Many arrays in few lines, none left out: a parameter with its moments in one, and all layers."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias

import attrs

from trainer_checkpoint.convert.paths import in_order, numbered, pattern_of

Owners: TypeAlias = Mapping[str, tuple[str, str]]


@attrs.frozen
class Line:
    """What is said of one array, or of several at once.

    Attributes:
        names: of the array, in each place where it is named.
        texts: what follows each name. Only lines with equal texts become one.
        kinds: of what the optimizer keeps for it, such as `mu`, of which the same is said.
    """

    names: tuple[str, ...]
    texts: tuple[str, ...] = ("",)
    kinds: tuple[str, ...] = ()

    def __str__(self) -> str:
        said = "".join(f"{name}{text}" for name, text in zip(self.names, self.texts, strict=True))
        return said + f" (and its {', '.join(self.kinds)})" * bool(self.kinds)


def of_paths(paths: Iterable[str]) -> dict[str, Line]:
    """Return lines that only name arrays."""
    return {path: Line((path,)) for path in paths}


def folded(lines: Mapping[str, Line], owners: Owners, last: Collection[str] = ()) -> list[str]:
    """Return as few lines as name all of some arrays, in order.

    Args:
        lines: what is said of each array, by its path.
        owners: of what an optimizer keeps for a parameter: the parameter's path, and the kind.
        last: paths to list after all others: what follows from them, as the optimizer's state.
    """
    groups: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for path in sorted(lines, key=in_order):
        owner, _ = owners.get(path, (path, ""))
        groups.setdefault((owner, lines[path].texts), []).append(path)
    made = {}
    for (owner, _), paths in groups.items():
        if owner in paths:
            kinds = tuple(owners[path][1] for path in paths if path != owner)
            made[owner] = attrs.evolve(lines[owner], kinds=kinds)
        else:
            made[paths[0]] = _joined([lines[path] for path in paths])
    ordered = sorted(made, key=lambda path: (path in last, in_order(path)))
    return [str(line) for line in _layers([made[path] for path in ordered])]


def _layers(lines: Sequence[Line]) -> Iterator[Line]:
    """Join lines that differ by one number in their names: by the one that joins the most."""
    alike: dict[object, list[Line]] = {}
    for line in lines:
        for key in _without_number(line):
            alike.setdefault(key, []).append(line)
    taken: set[Line] = set()
    for line in lines:
        if line in taken:
            continue
        left = [[each for each in alike[key] if each not in taken] for key in _without_number(line)]
        joined = max(left, key=len, default=[line])
        taken.update(joined)
        yield _joined(joined)


def _without_number(line: Line) -> list[object]:
    return [(form, line.texts, line.kinds) for form in numbered(line.names[0])]


def _joined(lines: Sequence[Line]) -> Line:
    names = zip(*(line.names for line in lines), strict=True)
    return attrs.evolve(lines[0], names=tuple(pattern_of(list(dict.fromkeys(n))) for n in names))
