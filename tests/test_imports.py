"""What a config names is imported, and nothing of it runs what it should not."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import flax.linen
import optax
import optax.contrib
import pytest
from command import trainer

from trainer_core import UserError, fit
from trainer_core.imports import check_makes, load_object

CALLABLES = ["os:system", "builtins:eval", "rich:os.system", "numpy:load", "numpy:memmap"]
CALLABLES += ["numpy.testing:runstring", "functools:partial", "stolen:call"]


@pytest.mark.parametrize("path", CALLABLES)
def test_what_does_not_say_what_it_makes_is_not_called(
    path: str, monkeypatch: pytest.MonkeyPatch, user_file: Any
) -> None:
    folder = user_file("stolen.py", "import functools, os\ncall = functools.partial(os.system)\n")
    monkeypatch.syspath_prepend(folder.parent)
    found = load_object(path, "[optimizer] transform")
    with pytest.raises(UserError, match="does not say that it makes a GradientTransformation"):
        check_makes(found, "GradientTransformation", path, "[optimizer] transform")
    with pytest.raises(UserError, match="does not say that it makes a Module"):
        check_makes(found, "Module", path, "[model] module")


@pytest.mark.parametrize(
    ("transform", "arguments"),
    [
        ("os:system", {"command": "touch mark"}),
        ("numpy.testing:runstring", {"astr": "open('mark', 'w').close()", "dict": {}}),
    ],
)
def test_a_recipe_of_a_stranger_calls_no_function_but_an_optimizer(
    transform: str, arguments: Any, recipe: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    optimizer = {"use": "optax", "transform": transform, "arguments": arguments}
    with pytest.raises(UserError, match="is no code of your own"):
        fit(recipe(optimizer=optimizer))
    assert not (tmp_path / "mark").exists()


def test_what_says_that_it_makes_one_may_be_called() -> None:
    for make in (optax.adamw, functools.partial(optax.adamw, b1=0.8)):
        check_makes(make, "GradientTransformation", "x", "x")
    check_makes(optax.contrib.dog, "GradientTransformation", "x", "x", packages=["optax"])
    check_makes(flax.linen.Dense, "Module", "x", "x")


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
    assert "own:Perceptron from own.py" in ended.stdout


def test_reading_a_run_says_what_it_imports_before_any_of_it_runs(tmp_path: Path) -> None:
    (tmp_path / "theirs.py").write_text("import sys\nprint('ran', file=sys.stderr)\n")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml").write_text('[model]\nuse = "theirs:Model"\n')
    for command in ("evaluate", "sample"):
        ended = trainer(command, "run", folder=tmp_path)
        assert ended.returncode == 2  # there is no such class
        assert ended.stderr.startswith("note: imports theirs:Model from theirs.py\nran\nerror: ")
        assert ended.stdout == ""


def test_what_comes_with_a_recipe_is_said_before_any_of_it_runs(tmp_path: Path) -> None:
    package = tmp_path / "theirs"
    package.mkdir()
    (package / "__init__.py").write_text("print('ran', flush=True)\n")
    (package / "model.py").write_text("")
    (tmp_path / "their.toml").write_text('[model]\nuse = "theirs.model:Model"\n')
    ended = trainer("train", "their.toml", folder=tmp_path)
    assert ended.returncode == 2  # there is no such class
    assert ended.stdout == "imports  theirs.model:Model from theirs/model.py\nran\n"
    quiet = trainer("train", "their.toml", "distributed.process=1", folder=tmp_path)
    assert quiet.stdout == "ran\n"  # process 0 says it
