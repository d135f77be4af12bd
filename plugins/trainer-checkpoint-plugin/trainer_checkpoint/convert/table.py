"""What becomes of every array, as a table, and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from trainer_checkpoint.convert.operations import Agree
from trainer_checkpoint.convert.paths import pattern_of
from trainer_checkpoint.convert.plan import Entry, Plan, Spec
from trainer_checkpoint.folding import folded, of_paths
from trainer_core.terminal.page import Page

_HEAD = ("source", "target", "shape", "what was done")
_LEFT = (
    ("dropped", "dropped by a rule"),
    ("ignored", "not taken over"),
    ("fresh", "not from the checkpoint"),
    ("begun", "begins anew, as the mapping says"),
    ("counted", "the number of steps"),
    ("absent", "not written"),
)
_OF_THE_TARGET = ("fresh", "begun", "counted", "absent")


def as_json(plan: Plan, specs: Mapping[str, Spec]) -> dict[str, Any]:
    """Return the plan as JSON values."""
    return {
        "arrays": [
            {
                "sources": list(entry.sources),
                "targets": list(entry.targets),
                "shapes": [list(specs[path].shape) for path in entry.targets],
                "dtypes": [specs[path].dtype for path in entry.targets],
                "done": [str(operation) for operation in entry.operations],
            }
            for entry in plan.entries
        ],
        **{name: list(getattr(plan, name)) for name, _ in _LEFT},
        "idle": list(plan.idle),
    }


def print_out(plan: Plan, specs: Mapping[str, Spec]) -> None:
    """Print a row for every target; layers and parts that went together share one."""
    page = Page()
    rows = [_row(entry, specs) for entry in plan.entries]
    for name, text in _LEFT:
        for path in getattr(plan, name):
            ends = ("-", path) if name in _OF_THE_TARGET else (path, "-")
            rows.append((*ends, "", text))
    widths = _widths(rows, page.width)
    for index, row in enumerate([_HEAD, *rows]):
        cells = [_wrapped(text, width - 2) for text, width in zip(row, widths, strict=True)]
        for line in range(max(map(len, cells))):
            texts = [cell[line] if line < len(cell) else "" for cell in cells]
            text = "".join(f"{each:<{width}}" for each, width in zip(texts, widths, strict=True))
            page.line((text.rstrip(), "" if index else "dim"))


def counted(plan: Plan) -> str:
    """Return in one line how many arrays became how many."""
    sources = sum(len(entry.sources) for entry in plan.entries)
    targets = sum(len(entry.targets) for entry in plan.entries)
    left = [f"{len(getattr(plan, name))} {text}" for name, text in _LEFT if getattr(plan, name)]
    return ", ".join([f"{sources} arrays became {targets}", *left])


def left_out(plan: Plan) -> list[tuple[str, str]]:
    """Return a label and all paths, of what a mapping drops and of what it begins anew."""
    kinds = (("dropped", plan.dropped), ("begun anew", plan.begun))
    return [
        (label, "\n".join(folded(of_paths(paths), plan.owners))) for label, paths in kinds if paths
    ]


def _row(entry: Entry, specs: Mapping[str, Spec]) -> tuple[str, str, str, str]:
    shapes = dict.fromkeys(_shape(specs[path]) for path in entry.targets)
    taken = all(isinstance(each, Agree) for each in entry.operations)
    renamed = "as it is" if entry.sources == entry.targets else "renamed"
    done = ", ".join(map(str, entry.operations)) if not taken or len(entry.sources) > 1 else renamed
    return pattern_of(entry.sources), pattern_of(entry.targets), ", ".join(shapes), done


def _shape(spec: Spec) -> str:
    return " x ".join(map(str, spec.shape)) or "scalar"


def _widths(rows: Sequence[Sequence[str]], whole: int) -> list[int]:
    """What was done and the shape get what they need, up to a limit; the paths share the rest."""
    need = [max(len(row[at]) for row in [_HEAD, *rows]) + 2 for at in range(len(_HEAD))]
    shape, done = min(need[2], 18), min(need[3], 22)
    rest = whole - shape - done
    source = max(rest - need[1], min(need[0], rest // 2))
    return [min(source, need[0]), min(rest - min(source, need[0]), need[1]), shape, done]


def _wrapped(text: str, width: int) -> list[str]:
    """Break a text after a slash or a space where it can be, elsewhere where it must be."""
    lines = [""]
    for piece in _pieces(text):
        if lines[-1] and len(lines[-1]) + len(piece.rstrip()) > width:
            lines.append("")
        while len(piece.rstrip()) > width:
            lines[-1], piece = piece[:width], piece[width:]
            lines.append("")
        lines[-1] += piece
    return [line.rstrip() for line in lines]


def _pieces(text: str) -> Iterable[str]:
    start = 0
    for at, letter in enumerate(text):
        if letter in "/ ":
            yield text[start : at + 1]
            start = at + 1
    yield text[start:]
