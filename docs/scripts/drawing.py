"""Draws the loop and its hooks, in the order in which the code calls them.

    python docs/scripts/drawing.py > docs/loop.svg

The order is read from `loop.py`, and from whatever it hands its hooks to; what a hook is from the
hook list.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import inspect
import re
import sys
from collections.abc import Iterator
from html import escape
from pathlib import Path

import attrs

from trainer_core.hookspecs import TrainerSpec

START = ("trainer_core.loop", "train")
# What the core does itself between two hooks: the expression in the code, and what to call it.
ACTS = {
    "program.compile_step": "compile the step",
    "program.initial_state": "initialise the state, straight into its shards",
    "supply.batch": "take the batch: data.batch(step)",
    "step_fn(state, batch)": "run the compiled step: (state, batch) to (state, metrics)",
}


@attrs.frozen
class Line:
    """One line of the drawing: a `phase`, a `hook`, an `act`, an `if` or a `loop`.

    Attributes:
        depth: how many ifs and loops are around it.
    """

    kind: str
    text: str
    depth: int


# ---------------------------------------------------------------------------- from the code


def order(module: str = START[0], function: str = START[1], depth: int = 0) -> list[Line]:
    """Return what a function of a module does with its hooks, in order."""
    return list(_statements(_function(module, function).body, module, depth))


@functools.cache
def _tree(module: str) -> ast.Module:
    spec = importlib.util.find_spec(module)
    assert spec is not None, module
    assert spec.origin is not None, module
    return ast.parse(Path(spec.origin).read_text())


def _function(module: str, name: str) -> ast.FunctionDef:
    return next(
        node
        for node in ast.walk(_tree(module))
        if isinstance(node, ast.FunctionDef) and node.name == name
    )


def _home(module: str, name: str) -> str:
    """The module in which a name that is used in another is defined."""
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.ImportFrom) and any(each.name == name for each in node.names):
            return str(node.module)
    return module


def _statements(body: list[ast.stmt], module: str, depth: int) -> Iterator[Line]:
    for statement in body:
        yield from _statement(statement, module, depth)


def _statement(node: ast.stmt, module: str, depth: int, word: str = "if") -> Iterator[Line]:
    if isinstance(node, ast.If):
        yield from _expression(node.test, module, depth)
        inner = list(_statements(node.body, module, depth + 1))
        if inner:
            yield Line("if", f"{word} {ast.unparse(node.test)}", depth)
        yield from inner
        for each in node.orelse:
            yield from _statement(each, module, depth, "else if" if inner else "if")
    elif isinstance(node, ast.While):
        yield Line("loop", f"each step, while {ast.unparse(node.test)}", depth)
        yield from _statements(node.body, module, depth + 1)
    elif isinstance(node, ast.With):
        before, after = [], []
        for item in node.items:
            first, last = _around(item.context_expr, module, depth)
            before += first
            after += last
        yield from [*before, *_statements(node.body, module, depth), *after]
    elif isinstance(node, ast.Try):
        for body in (node.body, node.orelse, node.finalbody):
            yield from _statements(body, module, depth)
    elif isinstance(node, ast.FunctionDef):  # it is called where it stands, by `interruptible`
        yield from _statements(node.body, module, depth)
    elif isinstance(node, ast.For):
        yield from _expression(node.iter, module, depth)
        yield from _statements(node.body, module, depth)
    else:
        yield from _expression(node, module, depth)


def _around(node: ast.expr, module: str, depth: int) -> tuple[list[Line], list[Line]]:
    """What a context manager does before its `yield`, and after it."""
    lines = list(_expression(node, module, depth))
    at = next((index for index, line in enumerate(lines) if line.kind == "yield"), len(lines))
    return lines[:at], lines[at + 1 :]


def _expression(node: ast.AST, module: str, depth: int) -> Iterator[Line]:
    text = ast.unparse(node)
    if text in ACTS:
        yield Line("act", ACTS[text], depth)
    elif isinstance(node, ast.Yield):
        yield Line("yield", "", depth)
    elif isinstance(node, ast.Call):
        for child in (*node.args, *node.keywords, node.func):
            yield from _expression(child, module, depth)
        yield from _call(node, module, depth)
    else:
        for each in ast.iter_child_nodes(node):
            yield from _expression(each, module, depth)


def _call(node: ast.Call, module: str, depth: int) -> Iterator[Line]:
    function = node.func
    if isinstance(function, ast.Attribute) and ast.unparse(function.value) == "hooks":
        if function.attr == "phase":
            name = next(each.value for each in node.keywords if each.arg == "name")
            yield Line("phase", ast.literal_eval(name), depth)
        else:
            yield Line("hook", function.attr, depth)
    elif isinstance(function, ast.Name) and _takes_hooks(node):
        yield from order(_home(module, function.id), function.id, depth)


def _takes_hooks(node: ast.Call) -> bool:
    given = [*node.args, *(each.value for each in node.keywords)]
    return any(isinstance(each, ast.Name) and each.id == "hooks" for each in given)


# ---------------------------------------------------------------------------- to a drawing

WIDTH, ROW, INDENT, TOP = 900, 30, 26, 58
FILL = {"one": "#dbeafe", "every": "#dcfce7", "act": "#f3f4f6"}
EDGE = {"one": "#2563eb", "every": "#16a34a", "act": "#9ca3af"}


def svg(lines: list[Line]) -> str:
    """Return the drawing: time goes downwards, a frame is what happens again and again."""
    height = TOP + ROW * len(lines) + 14
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        'font-family="Helvetica, Arial, sans-serif" font-size="13">',
        "<title>The loop and its hooks, in the order of a run</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        *_legend(),
        *_frames(lines),
    ]
    for index, line in enumerate(lines):
        parts += _row(line, 20 + INDENT * line.depth, TOP + ROW * index)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _legend() -> Iterator[str]:
    meanings = (
        ("one", 20, "one plugin answers, any may wrap it"),
        ("every", 300, "every plugin may answer"),
        ("act", 500, "done by the core"),
    )
    for kind, x, meaning in meanings:
        yield _box(kind, x, 16, 18)
        yield _text(x + 26, 30, meaning, "#374151")
    bold = 'font-weight="bold" font-size="15"'
    yield _text(660, 31, "phase", "#111827", bold) + _text(
        714, 30, "phase(run, name, program)", "#374151"
    )


def _frames(lines: list[Line]) -> Iterator[str]:
    for index, line in enumerate(lines):
        if line.kind != "loop":
            continue
        end = index + 1
        while end < len(lines) and lines[end].depth > line.depth:
            end += 1
        x, y = 14 + INDENT * line.depth, TOP + ROW * index
        yield (
            f'<rect x="{x}" y="{y}" width="{WIDTH - x - 14}" height="{ROW * (end - index)}" rx="8" '
            'fill="#fffbeb" stroke="#d97706" stroke-dasharray="5 4"/>'
        )


def _row(line: Line, x: int, y: int) -> Iterator[str]:
    if line.kind == "phase":
        yield _text(x, y + 20, line.text, "#111827", 'font-weight="bold" font-size="15"')
    elif line.kind in ("if", "loop"):
        yield _text(x, y + 20, line.text, "#92400e", 'font-style="italic"')
    elif line.kind == "act":
        yield _box("act", x, y + 4, 16 + int(7.2 * len(line.text)))
        yield _text(x + 8, y + 19, line.text, "#111827")
    else:
        spec = getattr(TrainerSpec, line.text)
        arguments = [name for name in inspect.signature(spec).parameters if name != "self"]
        said = f"{line.text}({', '.join(arguments)})"
        width = 16 + int(7.9 * len(said))
        yield _box("one" if spec.trainer_spec["firstresult"] else "every", x, y + 4, width)
        yield _text(x + 8, y + 19, said, "#111827", 'font-family="monospace"')
        told = re.split(r"(?<=\.) (?=One:|Every)|\n", inspect.getdoc(spec) or "")[0]
        yield _text(x + width + 12, y + 19, told.replace("`", ""), "#4b5563")


def _box(kind: str, x: int, y: int, width: int) -> str:
    return (
        f'<rect x="{x}" y="{y}" width="{width}" height="22" rx="5" '
        f'fill="{FILL[kind]}" stroke="{EDGE[kind]}"/>'
    )


def _text(x: int, y: int, text: str, color: str, more: str = "") -> str:
    return f'<text x="{x}" y="{y}" fill="{color}" {more}>{escape(text)}</text>'


if __name__ == "__main__":
    sys.stdout.write(svg(order()))
