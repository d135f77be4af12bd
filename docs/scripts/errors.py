"""Lists every message of an error or a warning that the code can print, by module.

    python docs/scripts/errors.py

Where a message holds something of the moment (a name, a number, a place), there stands `…`.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import attrs

ROOT = Path(__file__).parents[2]
WORDS = 4  # a text of fewer, somewhere in a function, is no sentence
INTRODUCTION = """\
# Errors

Every message that the core and its plugins can print, by the module that it comes from; search
this page, or the site, for words of yours. `…` stands for what differs from time to time: a name,
a number, a file and its line. The exit code is 2 for a `UserError` or a `SettingError`, a mistake
in a config or a command, before which nothing was written, and 1 for a run that failed.
"""


@attrs.frozen
class Message:
    """A message: its kind (what is raised, `warning`, or `fail` of a suite), its text, and the
    function that it stands in.
    """

    kind: str
    text: str
    function: str


def page(root: Path = ROOT) -> str:
    """Return the page, in Markdown."""
    parts = [INTRODUCTION]
    for module, messages in sorted(project(root).items()):
        parts.append(f"\n## {module}\n\n")
        parts += [f"- {code(each.text)} ({each.kind})\n" for each in messages]
    return "".join(parts)


def project(root: Path) -> dict[str, list[Message]]:
    """Return the messages of each module of the core and of the plugins that has any."""
    trees = {}
    for folder in (root, *sorted(root.glob("plugins/*/"))):
        for path in sorted(folder.glob("trainer_*/**/*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            if "templates" in parts:  # nothing of the core runs what a new plugin begins with
                continue
            trees[".".join(parts).removesuffix(".__init__")] = ast.parse(path.read_text())
    constants = {name: value for tree in trees.values() for name, value in _constants(tree)}
    trees = {module: _Inlined(constants).visit(tree) for module, tree in trees.items()}
    functions = [each for tree in trees.values() for each in _functions(tree)]
    helpers = _Helpers(
        frozenset(name for each in functions for name in _makers(each)),
        frozenset(each.name for each in functions if _raises_what_it_is_given(each)),
    )
    found = {module: list(_messages(tree, helpers)) for module, tree in trees.items()}
    return {module: messages for module, messages in found.items() if messages}


def _constants(tree: ast.Module) -> Iterator[tuple[str, ast.Constant]]:
    """Yield the texts that a module has under a name in capitals."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            name = ast.unparse(node.targets[0])
            if isinstance(node.value.value, str) and name.isupper():
                yield name, node.value


class _Inlined(ast.NodeTransformer):
    """Puts such a text where its name is filled into another."""

    def __init__(self, constants: dict[str, ast.Constant]) -> None:
        self.constants = constants

    def visit_FormattedValue(self, node: ast.FormattedValue) -> ast.expr:
        return self.constants.get(ast.unparse(node.value), node)


@attrs.frozen
class _Helpers:
    """Functions of any module: that make a message for others, that raise what they are given."""

    make: frozenset[str]
    raises: frozenset[str]


def code(text: str) -> str:
    """Return a text as code, whatever backticks it holds."""
    ticks = "`" * (max(map(len, re.findall("`+", text)), default=0) + 1)
    room = " " if text[:1] == "`" or text[-1:] == "`" else ""
    return f"{ticks}{room}{text}{room}{ticks}"


def _messages(tree: ast.Module, helpers: _Helpers) -> Iterator[Message]:
    """Yield the messages of a module, each once."""
    seen = set()
    for function in _functions(tree):
        said = []
        for kind, node in _raised(function, helpers.raises):
            made_nearby = not _is_told(node)
            said += [(kind, each) for each in (_sentences(function) if made_nearby else [node])]
        if function.name in helpers.make:
            said += [("part of an error", each) for each in _sentences(function)]
        for kind, node in said:
            if _is_told(node) and _text(node) not in seen:
                seen.add(_text(node))
                yield Message(kind, _text(node), function.name)


def _functions(tree: ast.Module) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


def _raised(
    function: ast.FunctionDef, raising: frozenset[str] = frozenset()
) -> Iterator[tuple[str, ast.expr]]:
    """Yield what is said by the errors and warnings that stand in a function."""
    for node in ast.walk(function):
        if not isinstance(node, ast.Call) or not node.args:
            continue
        name = ast.unparse(node.func).rpartition(".")[2]
        if name == "SettingError" and len(node.args) > 1:
            yield name, node.args[1]
        elif name in ("warning", "fail") or re.fullmatch(r"[A-Z]\w*Error", name):
            yield name, node.args[0]
        elif name in raising:
            yield from (("SettingError", each) for each in node.args if _is_sentence(each))


def _raises_what_it_is_given(function: ast.FunctionDef) -> bool:
    given = {each.arg for each in function.args.args}
    names = {node.id for _, node in _raised(function) if isinstance(node, ast.Name)}
    return bool(given & names)


def _makers(function: ast.FunctionDef) -> Iterator[str]:
    """Yield the functions that are called for a message that is raised here."""
    for _, node in _raised(function):
        parts = [node]
        if isinstance(node, ast.Name):
            for each in ast.walk(function):
                targets = getattr(each, "targets", [getattr(each, "target", function)])
                if isinstance(each, (ast.Assign, ast.NamedExpr)) and any(
                    isinstance(target, ast.Name) and target.id == node.id for target in targets
                ):
                    parts.append(each.value)
        for part in parts:
            for each in ast.walk(part):
                if isinstance(each, ast.Call):
                    yield ast.unparse(each.func).rpartition(".")[2]


def _sentences(function: ast.FunctionDef) -> Iterator[ast.expr]:
    """Yield the texts of a function that are long enough to be searched for."""
    inner = {
        id(part)
        for node in ast.walk(function)
        if isinstance(node, ast.JoinedStr)
        for part in ast.walk(node)
        if part is not node
    }
    docstring = {id(each.value) for each in function.body[:1] if isinstance(each, ast.Expr)}
    for node in ast.walk(function):
        if not isinstance(node, (ast.JoinedStr, ast.Constant)) or id(node) in inner | docstring:
            continue
        if _is_sentence(node):
            yield node


def _is_sentence(node: ast.expr) -> bool:
    return len(re.findall(r"[a-z]{2,}", _text(node))) >= WORDS


def _is_told(node: ast.expr) -> bool:
    """Whether a text says something that is written out here."""
    return bool(re.search(r"\w{2,}", _text(node)))


def _text(node: ast.expr) -> str:
    """Return a text with `…` for what is filled in; nothing where it is not written out here."""
    if isinstance(node, ast.Constant):
        said = node.value if isinstance(node.value, str) else ""
        said = re.sub(r"%[sdr]|%\.\d+[fg]", "…", said)
    elif isinstance(node, ast.JoinedStr):
        parts = [_text(part) if isinstance(part, ast.Constant) else "…" for part in node.values]
        said = "".join(parts)
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        said = f"{_text(node.left)}{_text(node.right) or '…'}"
    else:
        return ""
    return re.sub("…+", "…", re.sub(r"\s*\n\s*", " ", said))


if __name__ == "__main__":
    sys.stdout.write(page())
