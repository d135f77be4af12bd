"""The numbers that the design promises to hold: sizes, imports, dependencies, documentation."""

from __future__ import annotations

import ast
import inspect
import re
import statistics
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from models import Recorder
from packaging.requirements import Requirement

from trainer_core import hookspecs

ROOT = Path(__file__).parents[1]
CORE = sorted((ROOT / "trainer_core").rglob("*.py"))
PLUGINS = sorted(
    path
    for path in (ROOT / "plugins").glob("*/*/**/*.py")
    if path.relative_to(ROOT).parts[2] != "tests"
)
PROJECTS = [ROOT / "pyproject.toml", *sorted(ROOT.glob("plugins/*/pyproject.toml"))]
HOOKS = [name for name in vars(hookspecs.TrainerSpec) if not name.startswith("_")]


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


def project(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads(path.read_text())["project"]
    return found


def requirements(path: Path) -> dict[str, Requirement]:
    return {each.name: each for each in map(Requirement, project(path)["dependencies"])}


# ------------------------------------------------------------------ sizes


def test_there_is_something_to_measure() -> None:
    assert len(CORE) > 20
    assert len({path.relative_to(ROOT).parts[1] for path in PLUGINS}) >= 2


def test_the_loop_takes_at_most_300_lines_and_25_imported_names() -> None:
    text = (ROOT / "trainer_core" / "loop.py").read_text()
    names = {
        alias.asname or alias.name
        for node in ast.walk(ast.parse(text))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    }
    assert len(text.splitlines()) <= 300
    assert len(names) <= 25, sorted(names)


def test_a_function_takes_at_most_60_lines() -> None:
    too_long = [
        f"{shown(path)}:{node.lineno} {node.name}: {node.end_lineno - node.lineno + 1}"
        for path in [*CORE, *PLUGINS]
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > 60
    ]
    assert not too_long, too_long


def test_the_median_file_takes_at_most_150_lines() -> None:
    sizes = [len(path.read_text().splitlines()) for path in [*CORE, *PLUGINS]]
    assert statistics.median(size for size in sizes if size > 1) <= 150


# ------------------------------------------------------------------ imports


def imported(path: Path) -> Iterator[str]:
    """Yield the top-level packages that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield (node.module or "").partition(".")[0]


def test_the_core_imports_no_framework_and_no_plugin() -> None:
    packages = {path.relative_to(ROOT).parts[2] for path in PLUGINS}
    foreign = {"flax", "orbax", *packages}
    found = [(shown(path), name) for path in CORE for name in imported(path) if name in foreign]
    assert not found


def test_no_model_plugin_imports_another_but_for_a_model_that_mixes_both() -> None:
    for path in PLUGINS:
        if path.name == "bridge.py":
            continue
        own = path.relative_to(ROOT).parts[2]
        others = {"trainer_nnx", "trainer_linen"} - {own}
        assert not others & set(imported(path)), shown(path)


def in_a_process(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_every_module_of_the_core_is_imported_where_flax_and_orbax_are_not_installed() -> None:
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in CORE]
    modules = [name.removesuffix(".__init__") for name in modules if "__main__" not in name]
    in_a_process(
        "import sys, importlib\n"
        "sys.modules['flax'] = sys.modules['orbax'] = None\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
    )


@pytest.mark.parametrize(
    "code",
    [
        "import trainer_core",
        "import trainer_core.config; trainer_core.config.load_config()",
        "import trainer_core.cli",
        "import trainer_core.cli.plan",
        "from trainer_core import plugin, hookimpl, setting, RunError, UserError",
    ],
)
def test_a_config_is_checked_without_jax(code: str) -> None:
    heavy = ["jax", "jaxlib", "optax", "flax", "orbax", "tensorstore"]
    in_a_process(
        f"import sys\n{code}\n"
        f"found = [name for name in {heavy!r} if name in sys.modules]\n"
        "assert not found, found\n"
    )


# ------------------------------------------------------------------ dependencies


def test_the_core_depends_on_what_the_design_lists_or_decisions_explain() -> None:
    listed = {"jax", "optax", "pluggy", "attrs", "cattrs", "numpy", "rich"}
    found = set(requirements(ROOT / "pyproject.toml"))
    assert listed <= found
    decisions = (ROOT / "docs" / "decisions.md").read_text()
    assert not [name for name in found - listed if f"**{name}**" not in decisions]


@pytest.mark.parametrize("path", PROJECTS, ids=lambda path: path.parent.name)
def test_every_dependency_has_a_lower_bound_and_the_jax_stack_no_upper_one(path: Path) -> None:
    for name, each in requirements(path).items():
        operators = {spec.operator for spec in each.specifier}
        assert ">=" in operators, each
        if name == "pluggy":
            assert str(each.specifier) == "<2,>=1.7"
        elif not name.startswith("trainer-"):
            assert operators == {">="}, each


@pytest.mark.parametrize("path", PROJECTS[1:], ids=lambda path: path.parent.name)
def test_a_plugin_admits_the_cores_version(path: Path) -> None:
    version = project(ROOT / "pyproject.toml")["version"]
    core = requirements(path)["trainer-core"]
    assert core.specifier.contains(version, prereleases=True), core


def test_every_default_is_registered_like_anyones() -> None:
    """What `defaults/` offers is reached by an entry point that names an existing class."""
    import importlib

    groups = project(ROOT / "pyproject.toml")["entry-points"]
    targets = [target for group in groups.values() for target in group.values()]
    assert all(target.startswith("trainer_core.defaults.") for target in targets)
    for target in targets:
        module, _, name = target.partition(":")
        assert isinstance(getattr(importlib.import_module(module), name), type)


# ------------------------------------------------------------------ the repository


def tracked() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).exists()]


def test_no_tracked_file_names_a_home_a_workplace_or_an_index() -> None:
    # Put together here, so that this file does not match itself.
    private = ["/" + "home/", "/" + "work/", "/" + "Users/", "/" + "root/"]
    hosts = ["files." + "pythonhosted.org", "pypi." + "org", "index-" + "url"]
    words = re.compile("|".join(rf"(?<![\w.]){re.escape(each)}\w" for each in private))
    found = []
    for path in tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [(shown(path), match) for match in words.findall(text)]
        found += [(shown(path), host) for host in hosts if host in text]
    assert not found


def test_no_lock_file_is_tracked() -> None:
    assert not [shown(path) for path in tracked() if path.name.endswith(".lock")]


def test_nothing_but_the_house_stands_at_the_top() -> None:
    house = {
        *("trainer_core", "plugins", "tests", "docs", "benchmarks", ".ci"),
        *("pyproject.toml", "tox.ini", "README.md", "LICENSE", "CHANGELOG.md", ".gitignore"),
    }
    top = {path.relative_to(ROOT).parts[0] for path in tracked()}
    assert top <= house, top - house


# ------------------------------------------------------------------ hooks


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_is_documented_with_its_exact_arguments(hook: str) -> None:
    text = (ROOT / "docs" / "hooks.md").read_text()
    parameters = list(inspect.signature(getattr(hookspecs.TrainerSpec, hook)).parameters)[1:]
    heading = f"### `{hook}({', '.join(parameters)})`"
    assert heading in text.splitlines(), heading


def test_no_hook_is_documented_that_is_not_there() -> None:
    text = (ROOT / "docs" / "hooks.md").read_text()
    assert re.findall(r"^### `(\w+)\(", text, re.MULTILINE) == HOOKS


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_says_in_its_docstring_what_it_is_for(hook: str) -> None:
    spec = getattr(hookspecs.TrainerSpec, hook)
    assert len(inspect.getdoc(spec) or "") > 40
    options = spec.trainer_spec
    assert ("One: " in spec.__doc__) == options["firstresult"]


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_is_recorded_by_the_recorder_of_the_loop_tests(hook: str) -> None:
    """So that test_loop, which runs over all hooks, has a call of each to look at."""
    implementation = getattr(Recorder, hook)
    assert hasattr(implementation, "trainer_impl")
    spec = inspect.signature(getattr(hookspecs.TrainerSpec, hook))
    assert list(inspect.signature(implementation).parameters) == list(spec.parameters)
