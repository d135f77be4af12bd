"""`trainer new-plugin`: what it writes is installed and tested as it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from trainer_core import cli
from trainer_core.cli.new_plugin import KINDS, package


@pytest.mark.long
def test_what_it_writes_passes_its_own_tests_once_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An optimizer: the other kinds are tried in test_third_party.py, as docs/write-a-plugin.md.
    monkeypatch.chdir(tmp_path)
    assert cli.run(["new-plugin", "optimizer", "new"]) == 0
    site = tmp_path / "site"
    install = ["uv", "pip", "install", "--python", sys.executable, "--quiet", "--no-deps"]
    subprocess.run([*install, "--target", str(site), "./trainer-new-plugin"], check=True)
    environment = {**os.environ, "PYTHONPATH": str(site)}
    trainer = str(Path(sys.executable).with_name("trainer"))
    listed = subprocess.run(
        [trainer, "plugins", "--check", "--json"], env=environment, stdout=subprocess.PIPE
    )
    states = {each["name"]: each["state"] for each in json.loads(listed.stdout)["plugins"]}
    assert states["new"] == "ok"
    tried = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "trainer-new-plugin"],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert tried.returncode == 0, tried.stdout


@pytest.mark.parametrize("kind", KINDS)
def test_a_third_party_writes_little(kind: str) -> None:
    written = package(kind, "some-name")
    project = [line for line in written["pyproject.toml"].splitlines() if line]
    assert len(project) <= 15
    tomllib.loads(written["pyproject.toml"])
    most = {"optimizer": 30, "checkpoint": 150}.get(kind, 75)
    assert len(written["trainer_some_name.py"].splitlines()) < most
    assert len(written["tests/test_trainer_some_name.py"].splitlines()) == 5
    assert "Example" not in "".join(written.values())


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("optimiser", "lion"), "no kind of plugin 'optimiser' (did you mean 'optimizer'?)"),
        (("optimizer", "My Lion"), "such as 'my-lion'"),
        (("optimizer", "../lion"), "such as 'lion'"),
        (("optimizer", "adamw"), "is registered for [optimizer] by trainer-core"),
        (("logger", "core"), "trainer_core, would hide the one that is installed"),
    ],
)
def test_what_cannot_be_written_is_said(
    arguments: tuple[str, ...],
    error: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.run(["new-plugin", *arguments]) == 2
    assert error in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_name_of_a_package_is_taken_for_that_of_its_plugin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.run(["new-plugin", "optimizer", "trainer-lion-plugin"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["trainer-lion-plugin"]


def test_a_folder_that_exists_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trainer-lion-plugin").mkdir()
    assert cli.run(["new-plugin", "optimizer", "lion"]) == 2
    assert "exists already; nothing was written" in capsys.readouterr().err
    assert not list((tmp_path / "trainer-lion-plugin").iterdir())


@pytest.mark.parametrize(("kind", "name"), [("optimizer", "true"), ("checkpoint", "path")])
def test_a_class_is_not_called_what_is_something_else(kind: str, name: str) -> None:
    module = package(kind, name)[f"trainer_{name}.py"]
    assert f"class {name.capitalize()}{kind.capitalize()}:" in module
    compile(module, "plugin", "exec")


def test_a_new_package_asks_for_what_the_core_asks_for() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    asked = {need for kind in KINDS.values() for need in kind.needs}
    assert asked <= set(project["dependencies"])
