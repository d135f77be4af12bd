"""Makes those pages of the site that do not stand in docs/: READMEs, the reference, the errors.

They are written to `docs/_made/`, which git does not keep, whenever the site is built.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import api
import errors

from trainer_core.cli.commands import COMMANDS, GROUP
from trainer_core.cli.parsing import Parser
from trainer_core.cli.plugin_settings import described
from trainer_core.imports import load_object
from trainer_core.registry import PLUGINS, SLOTS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
MADE = DOCS / "_made"
TABLES = {slot.group: slot.name for slot in (*SLOTS.values(), PLUGINS)}
# What stands in the navigation beside the pages that docs/index.md lists, by its headings.
NAVIGATION = {"Use": ["_made/errors"], "Write a plugin": ["_made/reference"]}

Link = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def moved() -> dict[Path, Path]:
    """Return the pages of the repository that are outside of docs/, and where the site has them."""
    found = {ROOT / "README.md": MADE / "readme.md", ROOT / "CHANGELOG.md": MADE / "changelog.md"}
    for page in sorted(ROOT.glob("plugins/*/README.md")):
        found[page] = MADE / f"{page.parent.name}.md"
    return found


def make() -> None:
    """Write all of them."""
    MADE.mkdir(exist_ok=True)
    for page in MADE.glob("*.md"):
        page.unlink()
    for page, place in moved().items():
        place.write_text(linked(page.read_text(), page, place))
    (MADE / "errors.md").write_text(errors.page())
    names = []
    for file in api.project_files(ROOT):
        about = tomllib.loads(file.read_text())
        names.append(about["project"]["name"])
        (MADE / f"reference-{names[-1]}.md").write_text("\n".join(reference(about)))
    (MADE / "reference.md").write_text(
        "# Reference\n\nWhat each distribution offers, from its code.\n\n```{toctree}\n"
        + "".join(f"reference-{name}\n" for name in names)
        + "```\n"
    )


# ---------------------------------------------------------------------------- links


def linked(text: str, page: Path, place: Path) -> str:
    """Return a page with links that lead, on the site, where they lead in the repository.

    Args:
        text: what is in it.
        page: where it stands in the repository.
        place: where the site has it.
    """

    def link(match: re.Match[str]) -> str:
        words, target = match.groups()
        if "://" in target or target.startswith("#"):
            return match[0]
        name, hash_, heading = target.partition("#")
        file = (page.parent / name).resolve()
        file = moved().get(file, file)
        if not file.is_relative_to(DOCS):
            return words  # a file of the code: the site has no page of it
        return f"[{words}]({os.path.relpath(file, place.parent)}{hash_}{heading})"

    return outside_of_fences(text, lambda part: Link.sub(link, part))


def outside_of_fences(text: str, change: Callable[[str], str]) -> str:
    """Return a text that was changed wherever it is no block of code."""
    fences = FENCE.findall(text)
    parts = [change(part) for part in FENCE.split(text)]
    return "".join(part + fence for part, fence in zip(parts, [*fences, ""], strict=True))


def with_navigation(index: str) -> str:
    """Return docs/index.md with a list of contents made from the links below each heading."""
    trees = []
    for section in re.split(r"^## ", index, flags=re.MULTILINE)[1:]:
        title = section.partition("\n")[0]
        links = [(" ".join(words.split()), target) for words, target in Link.findall(section)]
        pages = [f"{words} <{target.removesuffix('.md')}>" for words, target in links]
        entries = "\n".join([*pages, *NAVIGATION.get(title, [])])
        trees.append(f"```{{toctree}}\n:hidden:\n:caption: {title}\n\n{entries}\n```\n")
    return index + "\n" + "\n".join(trees)


# ---------------------------------------------------------------------------- reference


def reference(about: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of a distribution's page: what it offers, its commands, its Python names."""
    project = about["project"]
    yield f"# {project['name']}\n\n{project['description']}\n"
    commands = project.get("entry-points", {}).get(GROUP, {})
    if "scripts" in project:
        commands = {name: each.module for name, each in COMMANDS.items()}
    if commands:
        yield "## Commands\n"
        for name, module in commands.items():
            yield from _command(name, module)
    for group, offers in project.get("entry-points", {}).items():
        if group in TABLES:
            yield f"## `{group}`\n"
            for name, target in offers.items():
                yield from _offer(TABLES[group], name, load_object(target, name))
    if "scripts" in project:
        yield "## Hooks\n"
        yield from _directives(["autoclass:: trainer_core.hookspecs.TrainerSpec"])
    (package,) = about["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    for module, names in api.public(ROOT).items():
        if module.partition(".")[0] == package:
            yield f"## `{module}`\n"
            yield from _directives([_documented(module, name) for name in names])


def _command(name: str, module: str) -> Iterator[str]:
    loaded = importlib.import_module(module)
    summary = COMMANDS[name].summary if name in COMMANDS else loaded.SUMMARY
    parser = Parser(f"trainer {name}", summary)
    loaded.configure(parser)
    yield f"### `trainer {name}`\n\n{summary[0].upper()}{summary[1:]}.\n"
    yield "| argument | meaning |\n| --- | --- |"
    for action in parser._actions:
        takes = f" {action.metavar}" if action.option_strings and action.metavar else ""
        said = ", ".join(action.option_strings) + takes or str(action.metavar or action.dest)
        yield f"| `{said}` | {_cell(action.help or '')} |"
    yield ""


def _offer(table: str, name: str, cls: type[Any]) -> Iterator[str]:
    place = f"[plugins.{name}]" if table == "plugins" else f'[{table}] use = "{name}"'
    yield f"### `{place}`\n\n{_cell(inspect.getdoc(cls) or '')}\n"
    rows = list(described(cls))
    if rows:
        yield "| key | type | default | unit | meaning |\n| --- | --- | --- | --- | --- |"
        for each in rows:
            cells = (f"`{each.key}`", each.type, f"`{each.default}`", each.unit, each.meaning)
            yield "| " + " | ".join(map(_cell, cells)) + " |"
        yield ""


def _cell(text: str) -> str:
    text = text.replace("|", "\\|")
    return text if "`" in text else text.replace("<", "&lt;")


def _documented(module: str, name: str) -> str:
    value = getattr(importlib.import_module(module), name)
    if inspect.isclass(value):
        kind = "autoexception" if issubclass(value, Exception) else "autoclass"
    else:
        kind = "autofunction" if inspect.isroutine(value) else "autodata"
    return f"{kind}:: {module}.{name}"


def _directives(names: list[str]) -> Iterator[str]:
    yield "```{eval-rst}"
    for each in names:
        members = "\n   :members:\n   :member-order: bysource" if "autoclass" in each else ""
        yield f".. {each}{members}\n"
    yield "```\n"
