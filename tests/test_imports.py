"""What a config names is imported, and nothing of it runs what it should not."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
from command import trainer

from trainer_core import UserError, fit
from trainer_core.imports import load_object


@pytest.mark.parametrize(
    "path",
    [
        "os:system",
        "subprocess:run",
        "builtins:eval",
        "rich:os.system",
        "functools:partial",
        "stolen:call",
    ],
)
def test_what_python_itself_has_is_refused(
    path: str, monkeypatch: pytest.MonkeyPatch, user_file: Any
) -> None:
    folder = user_file("stolen.py", "import functools, os\ncall = functools.partial(os.system)\n")
    monkeypatch.syspath_prepend(folder.parent)
    with pytest.raises(UserError, match="names something of Python itself"):
        load_object(path, "[optimizer] transform")


def test_a_recipe_of_a_stranger_calls_no_function_of_the_system(
    recipe: Any, tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    optimizer = {
        "use": "optax",
        "transform": "os:system",
        "arguments": {"command": f"touch {mark}"},
    }
    with pytest.raises(UserError, match=r'\[optimizer\] transform = "os:system" names something'):
        fit(recipe(optimizer=optimizer))
    assert not mark.exists()


def test_partial_functions_of_installed_packages_are_fine() -> None:
    assert isinstance(load_object("optax:adamw", "x"), type(lambda: None))
    import optax

    made = functools.partial(optax.adamw, b1=0.8)
    optax.quick = made
    assert load_object("optax:quick", "x") is made
    del optax.quick


EVIL = "open('ran', 'w').close()\nfrom models import Perceptron\n"


def test_a_run_of_a_stranger_imports_from_no_place_but_its_own(tmp_path: Path) -> None:
    """Its record of where it was started from may say anything."""
    elsewhere, run, here = tmp_path / "elsewhere", tmp_path / "theirs" / "run", tmp_path / "here"
    for folder in (elsewhere, run, here):
        folder.mkdir(parents=True)
    (elsewhere / "evil.py").write_text(EVIL)
    (run / "config.toml").write_text('[model]\nuse = "evil:Perceptron"\n')
    (run / "versions.json").write_text(f'{{"import folders": ["{elsewhere}"]}}')
    ended = trainer("evaluate", str(run), folder=here)
    assert ended.returncode == 2
    assert "there is no module 'evil'" in ended.stderr
    assert not (here / "ran").exists()


def test_a_run_says_what_it_imports_from_beside_its_recipe(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("from models import Perceptron\n")
    (tmp_path / "own.toml").write_text(
        '[run]\nsteps = 1\n[model]\nuse = "own:Perceptron"\n[data]\nuse = "models:Examples"\n'
    )
    ended = trainer("train", "own.toml", folder=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert f"own:Perceptron from {tmp_path / 'own.py'}" in ended.stdout
