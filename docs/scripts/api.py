"""The public surface, one line for each name: what others may build on, and so what must not change
unsaid.

    python docs/scripts/api.py > docs/api.txt

A line is a kind, a full name, and what belongs to it:

- package: where public Python names are: all those in its `__all__`, and what the pages show of
  other modules in `from ... import ...`
- python: a function or class with its signature, a method or attribute of a class; of a conformance
  suite, what a subclass may set and call, not its tests
- hook, slot, group, offer: the hooks; tables that choose; entry-point groups; who offers what
- command: a command with its arguments, each of its options
- setting: a key of a config, with its type and default
- metric, file: what a line of metrics.jsonl and the directory of a run hold, from a small run
- exit: what a command ends with, other than 0, and the error that it means
- env: an environment variable that our code reads itself

`docs/api-before.txt` is the same list as it was when the topmost section of CHANGELOG.md was begun.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import io
import json
import re
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs

from trainer_core import Term, fit, hookspecs
from trainer_core.cli import INTERRUPTED
from trainer_core.cli.commands import COMMANDS, GROUP
from trainer_core.cli.failures import error_log
from trainer_core.cli.parsing import Parser
from trainer_core.cli.plugin_settings import described
from trainer_core.config import CORE_TABLES
from trainer_core.defaults.jsonl import CUT, DAMAGED
from trainer_core.errors import TrainerError
from trainer_core.imports import load_object
from trainer_core.loss import losses_by_term
from trainer_core.registry import PLUGINS, SLOTS
from trainer_core.requests import SAVE
from trainer_core.stacks import stacks

ROOT = Path(__file__).parents[2]
IMPORT = re.compile(r"^from ([\w.]+) import (\([^)]*\)|[\w, ]+)$", re.MULTILINE)


def surface(root: Path = ROOT) -> str:
    """Return the list for all distributions of a checkout."""
    projects = [tomllib.loads(path.read_text()) for path in project_files(root)]
    version = projects[0]["project"]["version"]
    lines = [*hooks(hookspecs.TrainerSpec), *slots(), *commands(projects), *settings(projects)]
    lines += [*run_directory(), *exit_codes(), *variables(root)]
    for module, names in public(root).items():
        lines += [f"package {module}", *python(module, names)]
    header = f"# version {version}; made by docs/scripts/api.py, which says how to read it"
    return "\n".join([header, *sorted(lines)]) + "\n"


def project_files(root: Path) -> list[Path]:
    """Return the pyproject.toml of each distribution, the core's first."""
    return [root / "pyproject.toml", *sorted(root.glob("plugins/*/pyproject.toml"))]


# ---------------------------------------------------------------------------- Python


def packages(root: Path) -> Iterator[str]:
    """Yield the packages and modules of all distributions that say what is public in them."""
    for folder, path in sources(root):
        if re.search(r"^__all__ = ", path.read_text(), re.MULTILINE):
            parts = path.relative_to(folder).with_suffix("").parts
            yield ".".join(parts).removesuffix(".__init__")


def sources(root: Path) -> Iterator[tuple[Path, Path]]:
    """Yield each file of our packages, after the folder of its distribution."""
    for file in project_files(root):
        wheel = tomllib.loads(file.read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
        for path in sorted((file.parent / wheel["packages"][0]).rglob("*.py")):
            yield file.parent, path


def public(root: Path) -> dict[str, list[str]]:
    """Return the public names of all distributions, by the module to import them from."""
    found = {each: list(importlib.import_module(each).__all__) for each in packages(root)}
    tops = {each.partition(".")[0] for each in found}
    pages = [root / "README.md", *root.glob("docs/*.md"), *root.glob("plugins/*/README.md")]
    for page in sorted(pages):
        for module, listed in IMPORT.findall(page.read_text()):
            if module.partition(".")[0] in tops:
                names = found.setdefault(module, [])
                names += [each for each in re.findall(r"\w+", listed) if each not in names]
    return found


def python(package: str, names: list[str]) -> Iterator[str]:
    """Yield a line for each of a module's public names, and for each member of a class."""
    module = importlib.import_module(package)
    for name in names:
        value = getattr(module, name)
        if not inspect.isclass(value):
            yield f"python {package}.{name}{signature(value) if callable(value) else ''}"
        else:
            yield f"python {package}.{name}{made_by(value)}"
            yield from (f"python {package}.{name}.{each}" for each in members(value))


def made_by(cls: type[Any]) -> str:
    """How an instance is made; nothing for a plugin, whose settings stand among the settings."""
    if any(hasattr(each, "trainer_impl") for each in vars(cls).values()):
        return ""
    return signature(cls if attrs.has(cls) else cls.__init__)


def members(cls: type[Any]) -> Iterator[str]:
    """Yield the public methods and attributes that a class of ours, or one above it, defines.

    Of a Flax module only the methods: which attributes it has depends on the version of Flax.
    """
    fields = {field.name for field in attrs.fields(cls)} if attrs.has(cls) else set()
    foreign = any(not is_ours(each) and each.__module__ != "builtins" for each in cls.__mro__)
    found: dict[str, str] = {}
    for each in cls.__mro__:
        if not is_ours(each):
            continue
        annotations = vars(each).get("__annotations__", {})
        for name in {**vars(each), **annotations}:
            value = vars(each).get(name)
            if foreign and not inspect.isfunction(value):
                continue
            if not name.startswith(("_", "test_")) and name not in fields:
                said = member(value, annotations.get(name))
                if said is not None:
                    found.setdefault(name, f"{name}{said}")
    yield from found.values()


def member(value: Any, annotation: Any) -> str | None:
    """Return what belongs to a member; None for an answer to a hook, which only the core calls."""
    if isinstance(value, (property, functools.cached_property)):
        getter = value.fget if isinstance(value, property) else value.func
        return f": {bare(inspect.signature(getter).return_annotation)}"
    if isinstance(value, (staticmethod, classmethod)):
        return signature(value.__func__, bound_to="cls")
    if hasattr(value, "_pytestfixturefunction"):  # until pytest 8.4 a fixture was a function
        return ""
    if inspect.isfunction(value):
        return None if hasattr(value, "trainer_impl") else signature(value)
    if annotation is not None:
        return f": {bare(annotation)}"
    return f" = {value!r}" if isinstance(value, (int, str, bool)) else ""


def signature(function: Any, bound_to: str = "self") -> str:
    """Return a signature as it stands in the code, annotations as they are written.

    Nothing where the code is not ours: it may be another with another version.
    """
    code = getattr(inspect.unwrap(function), "__code__", None)
    if not attrs.has(function) and not (is_ours(function) and code and ".py" in code.co_filename):
        return ""
    factories = {}
    if inspect.isclass(function) and attrs.has(function):
        factories = {
            field.alias: field.default
            for field in attrs.fields(function)
            if not isinstance(field.default, (int, str, bool, tuple, type(None)))
        }
    made = inspect.signature(function)
    parameters = [
        each.replace(
            annotation=each.annotation if each.annotation is each.empty else Bare(each.annotation),
            default=each.default if each.default is each.empty else shown(each, factories),
        )
        for each in made.parameters.values()
        if each.name != bound_to
    ]
    returns = made.return_annotation
    if returns is not made.empty:
        returns = Bare(returns)
    return str(made.replace(parameters=parameters, return_annotation=returns))


def is_ours(value: Any) -> bool:
    """Whether a class or function is of one of our packages."""
    return str(getattr(value, "__module__", "")).partition(".")[0] in tops(ROOT)


@functools.cache
def tops(root: Path) -> frozenset[str]:
    return frozenset(path.partition(".")[0] for path in packages(root))


def shown(parameter: inspect.Parameter, factories: dict[str, Any]) -> Any:
    """A default by its value, or by three dots where it is made anew or has no short name."""
    default = parameter.default
    plain = isinstance(default, (int, float, str, bool, tuple, type(None)))
    return default if plain and parameter.name not in factories else Bare("...")


class Bare:
    """Text that a signature shows without quotes."""

    def __init__(self, annotation: Any) -> None:
        self.text = bare(annotation)

    def __repr__(self) -> str:
        return self.text


def bare(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


# ---------------------------------------------------------------------------- hooks, slots


def hooks(spec: type[Any]) -> Iterator[str]:
    """Yield a line for each hook, with what is deprecated of it."""
    for name in dir(spec):
        options = getattr(getattr(spec, name), "trainer_spec", None)
        if options is not None:
            kind = "one" if options["firstresult"] else "every"
            old = " deprecated" if options["warn_on_impl"] else ""
            old += "".join(f" deprecated={each}" for each in options["warn_on_impl_args"] or ())
            yield f"hook {name}{signature(getattr(spec, name))} {kind}{old}"


def slots() -> Iterator[str]:
    """Yield the tables that choose an implementation, and the entry-point groups."""
    for slot in SLOTS.values():
        yield f"slot {slot.name}: default {slot.default}, answers {', '.join(slot.hooks)}"
    for group in (*(slot.group for slot in SLOTS.values()), PLUGINS.group, GROUP):
        yield f"group {group}"


# ---------------------------------------------------------------------------- commands, settings


def commands(projects: list[dict[str, Any]]) -> Iterator[str]:
    """Yield each command with its arguments, and each of its options."""
    modules = {name: command.module for name, command in COMMANDS.items()}
    for each in projects:
        modules |= each["project"].get("entry-points", {}).get(GROUP, {})
    for name, module in modules.items():
        parser = Parser(f"trainer {name}", name)
        importlib.import_module(module).configure(parser)
        with contextlib.redirect_stdout(io.StringIO()) as page:
            parser.parse(["--help"])
        usage = page.getvalue().partition("\n")[0].removeprefix(f"usage: trainer {name}")
        yield f"command {name}:{usage}"
        for action in parser._actions:
            if action.option_strings and action.dest != "help":
                takes = f" {action.metavar}" if action.metavar else ""
                yield f"command {name} {action.option_strings[-1]}{takes}"


def settings(projects: list[dict[str, Any]]) -> Iterator[str]:
    """Yield what our distributions offer for each slot, and the settings of each."""
    tables = {slot.group: slot.name for slot in (*SLOTS.values(), PLUGINS)}
    for table, cls in CORE_TABLES.items():
        yield from _settings(table, cls)
    for each in projects:
        about = each["project"]
        for group, offers in about.get("entry-points", {}).items():
            for name, target in offers.items():
                yield f"offer {group}.{name} by {about['name']}"
                if group in tables:
                    yield from _settings(f"{tables[group]}[{name}]", load_object(target, name))


def _settings(table: str, cls: type[Any]) -> Iterator[str]:
    for each in described(cls):
        yield f"setting {table}.{each.key}: {each.type or 'any'} = {each.default or 'not set'}"


# ---------------------------------------------------------------------------- runs


def run_directory() -> Iterator[str]:
    """Yield each file that a run leaves, is asked by or fails with, and the keys of its metrics."""
    with tempfile.TemporaryDirectory() as folder:
        run, templates = Path(folder, "run"), "trainer_core.templates.{}:Example"
        fit(
            {
                "run": {"directory": str(run), "steps": 1},
                "model": {"use": templates.format("model")},
                "data": {"use": templates.format("data"), "batch_size": 1, "length": 8},
                "plugins": {"progress": False},
            }
        )
        (line,) = (run / "metrics.jsonl").read_text().splitlines()
        files = [path for path in run.iterdir() if path.is_file() and path.name[0] != "."]
        found = [str(path.relative_to(run)) for path in (*files, *run.glob("*/*"))]
    written = [error_log(Path(), 0), error_log(Path(), 1), stacks(Path(), 0)]
    for name in (*found, SAVE, DAMAGED, CUT, *(path.name for path in written)):
        yield f"file {name.replace('/1', '/STEP')}"
    (by_term, _) = losses_by_term(dict.fromkeys(("TERM", "another"), Term(0.0, 1.0)))
    metrics = list(json.loads(line))
    losses = [name for name in metrics if name.endswith("loss")]
    for name in (*metrics, *(by_term.replace("loss", loss) for loss in losses)):
        yield f"metric {name}"


def exit_codes() -> Iterator[str]:
    """Yield what a command ends with where it fails."""
    for error in TrainerError.__subclasses__():
        yield f"exit {error.exit_code}: {error.__name__}"
    yield f"exit {INTERRUPTED}: KeyboardInterrupt"


def variables(root: Path) -> Iterator[str]:
    """Yield the environment variables that the code of our packages names where it reads them."""
    read = re.compile(r'environ(?:\.get\(|\[)(?:"(\w+)"|(\w+))(?!.*\] = )')
    asked = re.compile(r'"(\w+)" (?:not )?in os\.environ')
    found = set()
    for _, path in sources(root):
        found |= set(asked.findall(source := path.read_text()))
        for name, constant in read.findall(source):
            found |= {name or re.findall(rf'^{constant} = "(\w+)"', source, re.MULTILINE)[0]}
    yield from (f"env {each}" for each in found)


# ---------------------------------------------------------------------------- what changed


def unsaid(before: str, now: str, changelog: str) -> list[str]:
    """Return what the topmost section of a changelog does not name, and should.

    A name is said where it stands in backticks. What is new, or gone, with all that it holds needs
    to be named alone.
    """
    sections = re.split(r"^## ", changelog, flags=re.MULTILINE)[1:]
    version, begun = sections[0].split()[0], before.split()[2].rstrip(";")
    if len(sections) > 1 and begun != (last := sections[1].split()[0]):
        return [
            f"CHANGELOG.md has a section for {version}, and docs/api-before.txt is of {begun}: it "
            f"should be the docs/api.txt of {last}, as it was released"
        ]
    said = " ".join(re.findall(r"`([^`]+)`", sections[0]))
    old, new = set(before.splitlines()[1:]), set(now.splitlines()[1:])
    names_before, names_now = names(old), names(new)
    missing: dict[str, None] = {}
    for line in sorted(old ^ new):
        full, short, owner = named(line)
        whole = owner and not (owner in names_before and owner in names_now)
        if not whole and not re.search(rf"(?<![\w-]){re.escape(short)}(?![\w-])", said):
            missing[f"{'gone' if full not in names_now else 'new or changed'}: {line}"] = None
    return list(missing)


def names(lines: set[str]) -> set[str]:
    """Return the full names of some lines, and those of what holds them."""
    return {each for line in lines for each in (named(line)[0], named(line)[2])}


def named(line: str) -> tuple[str, str, str]:
    """Return the full name of a line, how a changelog names it, and the name of what holds it."""
    kind, rest = line.split(" ", 1)
    if kind in ("package", "group"):
        return rest, rest, ""
    if kind in ("file", "metric", "env"):
        return line, rest, ""
    if kind == "exit":
        code = line.partition(":")[0]
        return code, code, ""
    if kind == "command":
        found = re.match(r"([\w-]+)(?: (-[\w-]+))?", rest)
        assert found is not None, line
        command, option = found.groups()
        return (f"{command} {option}", option, command) if option else (command, command, "")
    full = re.split(r"[(: ]", rest, maxsplit=1)[0]
    owner, _, short = full.rpartition(".")
    return (full, short, "" if kind in ("hook", "slot", "offer") else owner)


if __name__ == "__main__":
    sys.stdout.write(surface())
