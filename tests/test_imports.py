"""What a config names is imported, and nothing of it runs what it should not."""

from __future__ import annotations

import contextlib
import functools
import py_compile
import subprocess
import sys
from collections.abc import Callable  # noqa: F401  named by annotations that are tried here
from pathlib import Path
from typing import Any

import flax.linen
import flax.nnx
import numpy as np
import optax
import optax.contrib
import pytest
from command import DECODER, environment, trainer

from trainer_core import UserError, fit
from trainer_core.imports import check_makes, load_object, own_files

pytestmark = pytest.mark.aside

CALLABLES = ["os:system", "builtins:eval", "rich:os.system", "numpy:load", "numpy:memmap"]
CALLABLES += ["numpy.testing:runstring", "functools:partial", "stolen:call", "ast:Module"]
# The annotations of these have the word in them: `-> ModuleType`, or a Module that is pytest's.
CALLABLES += ["_pytest.pathlib:import_path", "_pytest.python:pytest_pycollect_makemodule"]
CALLABLES += ["runpy:run_path", "importlib:import_module", "importlib.util:module_from_spec"]


@pytest.mark.parametrize("path", CALLABLES)
def test_what_does_not_say_what_it_makes_is_not_called(
    path: str, monkeypatch: pytest.MonkeyPatch, user_file: Any
) -> None:
    folder = user_file("stolen.py", "import functools, os\ncall = functools.partial(os.system)\n")
    monkeypatch.syspath_prepend(folder.parent)
    found = load_object(path, "[optimizer] transform")
    for kind in (optax.GradientTransformation, flax.linen.Module, flax.nnx.Module):
        with pytest.raises(UserError, match=f"does not say that it makes a {kind.__name__}"):
            check_makes(found, kind, path, "[model] module")


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


def test_a_recipe_of_a_stranger_calls_no_function_but_a_module(
    recipe: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It would import any file."""
    monkeypatch.chdir(tmp_path)
    evil = tmp_path / "elsewhere" / "evil.py"
    evil.parent.mkdir()
    evil.write_text("open('ran', 'w').close()\n")
    places = {"path": str(evil), "root": str(tmp_path)}
    arguments = {**places, "consider_namespace_packages": False}
    for use in ("nnx-module", "linen-module"):
        model = {"use": use, "module": "_pytest.pathlib:import_path", "arguments": arguments}
        with pytest.raises(UserError, match="is no code of your own"):
            fit({**recipe(), "model": model})
        assert not (tmp_path / "ran").exists()


def test_what_says_that_it_makes_one_may_be_called() -> None:
    transformation = optax.GradientTransformation
    for make in (optax.adamw, functools.partial(optax.adamw, b1=0.8)):
        check_makes(make, transformation, "x", "x")
    check_makes(optax.contrib.dog, transformation, "x", "x", packages=["optax"])
    check_makes(flax.linen.Dense, flax.linen.Module, "x", "x")
    check_makes(flax.nnx.Linear, flax.nnx.Module, "x", "x")


@pytest.mark.parametrize(
    ("said", "makes"),
    [
        ("optax.GradientTransformation", True),
        ("optax.GradientTransformationExtraArgs", True),
        ("optax.GradientTransformation | optax.GradientTransformationExtraArgs", True),
        ("optax.GradientTransformation | str", False),
        ("list[optax.GradientTransformation]", False),
        ("Callable[[], optax.GradientTransformation]", False),
        ("NotImported", False),
    ],
)
def test_a_function_says_by_the_class_that_it_returns(
    said: str, makes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a package: here numpy, into which it is put."""

    def make(other: NotThereEither) -> Any: ...  # type: ignore[name-defined]  # noqa: F821

    make.__annotations__["return"] = said
    monkeypatch.setattr(make, "__module__", "numpy")
    decorated = functools.wraps(make)(lambda other: None)
    for each in (make, decorated, functools.partial(make, other=1)):
        with contextlib.nullcontext() if makes else pytest.raises(UserError, match="does not say"):
            check_makes(each, optax.GradientTransformation, "x", "x")


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


def test_a_module_in_folders_that_are_no_packages_is_found(tmp_path: Path) -> None:
    file = tmp_path / "nobodys" / "models" / "net.py"
    file.parent.mkdir(parents=True)
    file.touch()
    assert own_files(["nobodys.models.net:Model"], [tmp_path]) == {"nobodys.models.net:Model": file}
    assert own_files(["optax._src.alias:adamw"]) == {}


@pytest.mark.parametrize("command", ["train", "convert", "compare"])
def test_commands_whose_stdout_is_for_their_answer_say_it_on_stderr(
    command: str, tmp_path: Path
) -> None:
    pytest.importorskip("trainer_checkpoint")
    (tmp_path / "theirs.py").write_text("import sys\nprint('ran', file=sys.stderr)\n")
    (tmp_path / "their.toml").write_text('[model]\nuse = "theirs:Model"\n')
    named = {"train": [], "convert": [written(tmp_path / "old")], "compare": ["their.toml"]}
    ended = trainer(command, *named[command], "their.toml", "--json", folder=tmp_path)
    assert ended.returncode == 2  # there is no such class
    assert ended.stderr.startswith("note: imports theirs:Model from theirs.py\n")
    assert ended.stderr.count("ran\n") == 1  # after that
    assert "theirs has no 'Model'" in ended.stderr
    assert ended.stdout == ""


def written(path: Path) -> str:
    """A checkpoint of other code."""
    import orbax.checkpoint as ocp

    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        checkpointer.save(path, ocp.args.PyTreeSave({"weights": np.ones(2)}))
    return str(path)


RUNS = "open('ran', 'w').close()\n"
ANYTHING = "open('ran', 'w').close()\ndef __getattr__(name): raise AttributeError(name)\n"


def stranger(folder: Path, text: str, files: dict[str, str]) -> Path:
    """A folder that somebody else made, with a recipe."""
    for name, source in {**files, "recipe.toml": text}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return folder / "recipe.toml"


@pytest.mark.parametrize("path", ["jax.py", "optax.py", "jax_plugins/evil/__init__.py"])
def test_what_lies_beside_a_recipe_does_not_run_unless_it_is_named(
    path: str, tmp_path: Path
) -> None:
    """In the place of a package, or as what JAX looks for by itself."""
    here, theirs = tmp_path / "here", tmp_path / "theirs"
    here.mkdir()
    text = '[run]\nsteps = 1\n[model]\nuse = "models:Perceptron"\n[data]\nuse = "models:Examples"\n'
    text = f'{text}[plugins]\nprogress = false\n[checkpoint]\nuse = "none"\n'
    stranger(theirs, text, {path: RUNS})
    stranger(here, text, {path: RUNS})
    for folder, recipe in ((here, theirs / "recipe.toml"), (theirs, Path("recipe.toml"))):
        ended = trainer("train", str(recipe), folder=folder)
        assert ended.returncode == 0, ended.stderr
        assert not list(tmp_path.rglob("ran"))


def test_a_package_whose_metadata_lie_beside_a_recipe_registers_nothing(tmp_path: Path) -> None:
    points = "[trainer.models]\nnice = evil:Model\n"
    folder = {"evil-1.dist-info/entry_points.txt": points, "evil.py": RUNS}
    recipe = stranger(tmp_path, '[model]\nuse = "nice"\n', folder)
    ended = trainer("train", recipe.name, folder=tmp_path)
    assert "no installed package offers 'nice'" in ended.stderr
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("use", "file"),
    [
        ("evil:Model", "evil.py"),
        ("e-vil:Model", "e-vil.py"),
        ("theirs.nothing:Model", "theirs/__init__.py"),
        ("compiled:Model", "compiled.pyc"),
    ],
)
def test_whatever_of_a_recipe_runs_is_said_before(use: str, file: str, tmp_path: Path) -> None:
    # In a folder called like that of installed packages, and by a recipe that says it is another's.
    folder = tmp_path / "site-packages"
    text = f'[model]\nuse = "{use}"\n[distributed]\nprocess = 1\n'
    stranger(folder, text, {file: ANYTHING})
    if file.endswith(".pyc"):
        source = folder / file
        py_compile.compile(str(source), cfile=str(folder / "made"), doraise=True)
        (folder / "made").rename(source)
    for at in (folder, tmp_path):
        recipe = (folder / "recipe.toml").relative_to(at)
        for command in ("train", "plan", "explain config"):
            ended = trainer(*command.split(), str(recipe), folder=at)
            assert ended.returncode == 2
            assert f"{use} from {(folder / file).relative_to(at)}" in ended.stdout + ended.stderr
            (at / "ran").unlink()


# What unpickles has to ask for a class, or a function, before it can call anything.
NO_PICKLE = """
import sys
from trainer_core.cli import run

def refuse(event, arguments):
    if event == "pickle.find_class":
        raise RuntimeError(f"unpickles {arguments}")

sys.addaudithook(refuse)
sys.exit(run(sys.argv[1:]))
"""
UNPICKLES = "import pickle\npickle.loads(b'cbuiltins\\nlist\\n.')\n"


@pytest.mark.long
def test_nothing_that_a_run_reads_is_unpickled(tmp_path: Path) -> None:
    pytest.importorskip("trainer_checkpoint")

    def ended(*arguments: str) -> subprocess.CompletedProcess[str]:
        program = [sys.executable, "-c", NO_PICKLE, *arguments]
        return subprocess.run(
            program, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
        )

    train = ["train", "--quiet", *DECODER, "run.directory=run", "checkpoint.every=2"]
    for arguments in (
        [*train, "run.steps=2"],
        [*train, "run.steps=4"],
        ["evaluate", "run"],
        ["sample", "run", "--length=2"],
        ["checkpoint", "verify", "run"],
        ["checkpoint", "diff", "run", "run"],
        ["convert", "run", *DECODER, "run.directory=other"],
    ):
        done = ended(*arguments)
        assert done.returncode == 0, done.stderr
    (tmp_path / "bad.py").write_text(UNPICKLES)  # as it would be found
    done = ended(*train, "run.steps=6", "plugins.bad.use=bad:Bad")
    assert "unpickles ('builtins', 'list')" in done.stderr


def test_what_is_no_import_path_imports_nothing(tmp_path: Path) -> None:
    for use in ("evil:a-b", "evil:Model ", "evil: Model", "evil :Model"):
        stranger(tmp_path, f'[model]\nuse = "{use}"\n', {"evil.py": RUNS})
        ended = trainer("train", "recipe.toml", folder=tmp_path)
        assert "expected an import path" in ended.stderr
        assert not (tmp_path / "ran").exists()
