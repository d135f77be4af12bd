"""What `.ci/release` refuses; that it passes as things are, CI sees by running it."""

from __future__ import annotations

import runpy
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
CHECK = runpy.run_path(str(ROOT / ".ci" / "distributions.py"))
FILES = ("pyproject.toml", "README.md", "LICENSE")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A core and one plugin, each with a package of two files, known to git."""
    root = tmp_path / "checkout"
    for folder, package in ((root, "kernel"), (root / "plugins" / "a-plugin", "extra")):
        (folder / package).mkdir(parents=True)
        for name in (*FILES, f"{package}/__init__.py", f"{package}/py.typed"):
            (folder / name).write_text("the same everywhere\n")
    (root / "CHANGELOG.md").write_text("# Changelog\n\n## 0.3.1 (unreleased)\n")
    write(root, "kernel", [], "kernel")
    write(root / "plugins" / "a-plugin", "a-plugin", ["kernel>=0.3,<0.4"], "extra")
    subprocess.run(["git", "init", "--quiet"], cwd=root, check=True)
    subprocess.run(["git", "add", "."], cwd=root, check=True)
    return root


def write(folder: Path, name: str, needed: list[str], package: str, version: str = "0.3.1") -> None:
    (folder / "pyproject.toml").write_text(
        f'[project]\nname = "{name}"\nversion = "{version}"\ndependencies = {needed}\n'
        f'[tool.hatch.build.targets.wheel]\npackages = ["{package}"]\n'
    )


# ---------------------------------------------------------------------------- versions


def test_the_versions_of_this_checkout_are_in_step() -> None:
    assert CHECK["version_problems"](ROOT) == []


def test_every_distribution_has_the_license() -> None:
    assert CHECK["license_problems"](ROOT) == []


@pytest.mark.parametrize(
    ("needed", "version", "told"),
    [
        (["kernel>=0.3,<0.4"], "0.3.0", "version = 0.3.0, and that of kernel is 0.3.1"),
        ([], "0.3.1", "it does not depend on kernel"),
        (["kernel>=0.2,<0.4"], "0.3.1", "expected >=0.3,<0.4"),
        (["kernel>=0.3"], "0.3.1", "expected >=0.3,<0.4"),
        (["kernel>=0.3,<0.5"], "0.3.1", "expected >=0.3,<0.4"),
        (["kernel>=0.3.2,<0.4"], "0.3.1", "expected >=0.3,<0.4"),
        (["kernel"], "0.3.1", "expected >=0.3,<0.4"),
    ],
)
def test_a_plugin_out_of_step_is_named(
    checkout: Path, needed: list[str], version: str, told: str
) -> None:
    assert CHECK["version_problems"](checkout) == []
    write(checkout / "plugins" / "a-plugin", "a-plugin", needed, "extra", version)
    (problem,) = CHECK["version_problems"](checkout)
    assert problem.startswith("plugins/a-plugin/pyproject.toml: ")
    assert told in problem


def test_a_version_without_a_heading_in_the_changelog_is_told(checkout: Path) -> None:
    (checkout / "CHANGELOG.md").write_text("## 0.3.10\n")
    (problem,) = CHECK["version_problems"](checkout)
    assert "## 0.3.1" in problem


# ---------------------------------------------------------------------------- contents

Names = Collection[str]


def built(root: Path, leave_out: Names = (), add: Names = ()) -> Path:
    """Make the sdists and wheels of a checkout as hatchling lays them out, but for some files."""
    dist = root.parent / "dist"
    dist.mkdir()
    for folder, stem, package in (
        (root, "kernel-0.3.1", "kernel"),
        (root / "plugins" / "a-plugin", "a_plugin-0.3.1", "extra"),
    ):
        files = {f"{package}/__init__.py", f"{package}/py.typed"}
        info = {f"{stem}.dist-info/{each}" for each in ("METADATA", "WHEEL", "RECORD")}
        info |= {f"{stem}.dist-info/licenses/LICENSE"}
        added = {each for each in add if each.startswith(stem)}
        with zipfile.ZipFile(dist / f"{stem}-py3-none-any.whl", "w") as wheel:
            for name in {*files, *info, *added} - {*leave_out}:
                wheel.writestr(name.removeprefix(f"{stem}:"), "")
        more = {"CHANGELOG.md"} if folder == root else set()
        with tarfile.open(dist / f"{stem}.tar.gz", "w:gz") as sdist:
            for name in {*files, *FILES, *more, "PKG-INFO", ".gitignore"} - {*leave_out}:
                sdist.add(root / "LICENSE", f"{stem}/{name}")
    return dist


def test_distributions_that_hold_what_they_must_pass(checkout: Path) -> None:
    assert CHECK["content_problems"](checkout, built(checkout)) == []


@pytest.mark.parametrize(
    ("missing", "told"),
    [
        ("extra/__init__.py", ["a_plugin-0.3.1-py3-none-any.whl", "a_plugin-0.3.1.tar.gz"]),
        ("kernel-0.3.1.dist-info/licenses/LICENSE", ["kernel-0.3.1-py3-none-any.whl"]),
        ("CHANGELOG.md", ["kernel-0.3.1.tar.gz"]),
    ],
)
def test_a_file_that_is_missing_is_named(checkout: Path, missing: str, told: list[str]) -> None:
    problems = CHECK["content_problems"](checkout, built(checkout, leave_out=[missing]))
    assert problems == [f"{archive} lacks {missing}" for archive in told]


@pytest.mark.parametrize("name", ["tests/test_a.py", "extra/notes.txt", "benchmarks/a.py"])
def test_a_file_that_should_not_be_there_is_named(checkout: Path, name: str) -> None:
    dist = built(checkout, add=[f"a_plugin-0.3.1:{name}"])
    (problem,) = CHECK["content_problems"](checkout, dist)
    assert problem == f"a_plugin-0.3.1-py3-none-any.whl holds {name}, which should not be in it"


def add_tests(root: Path) -> None:
    (root / "kernel" / "tests").mkdir()
    (root / "kernel" / "tests" / "test_a.py").write_text("")


def add_plugin(root: Path) -> None:
    shutil.copytree(root / "plugins" / "a-plugin", root / "plugins" / "b-plugin")
    write(root / "plugins" / "b-plugin", "b-plugin", ["kernel>=0.3,<0.4"], "extra")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (add_tests, "kernel/tests/test_a.py belongs into no wheel"),
        (lambda root: (root / "kernel" / "py.typed").unlink(), "kernel/py.typed is missing"),
        (add_plugin, "dist lacks b_plugin-0.3.1.tar.gz"),
        (lambda root: (root / "LICENSE").write_text("other"), "plugins/a-plugin/LICENSE is not"),
        (
            lambda root: (root.parent / "dist" / "kernel-0.3.0.tar.gz").touch(),
            "dist/kernel-0.3.0.tar.gz is none of this release",
        ),
    ],
)
def test_what_is_wrong_with_the_checkout_is_told(
    checkout: Path, change: Callable[[Path], Any], told: str
) -> None:
    dist = built(checkout)
    change(checkout)
    subprocess.run(["git", "add", "--all", "."], cwd=checkout, check=True)
    problems = CHECK["content_problems"](checkout, dist)
    assert [each for each in problems if each.startswith(told)], problems
