"""Packages that are broken, odd, twice there or gone: one message each, and nobody else stops."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
import venv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import packages
import pytest
from command import PERCEPTRON, environment

from trainer_core import UserError, fit, installed
from trainer_core.cli import run
from trainer_core.config import load_config
from trainer_core.installed import NO_PLUGINS, core_alone
from trainer_core.registry import PLUGINS, SLOTS, candidates

HEAD = "from trainer_core import hookimpl, plugin, setting\n@plugin\nclass X:\n    "

# What the module `odd` holds, and what must be said of its plugin, in this order.
MISTAKES: dict[str, tuple[str, list[str]]] = {
    "its import raises": (
        "raise OSError('no such library')",
        ["cannot be loaded from odd:X", "importing odd raised OSError: no such library"],
    ),
    "its import ends the process": (
        "raise SystemExit(3)",
        ["cannot be loaded from odd:X", "importing odd raised SystemExit: 3"],
    ),
    "it imports what is not there": (
        "import numpyy",
        ["importing odd raised ModuleNotFoundError: No module named 'numpyy'"],
    ),
    "its attribute is missing": (
        "class Xx: ...",
        ["cannot be loaded from odd:X", "odd has no 'X' (did you mean 'Xx'?)"],
    ),
    "it is no plugin": ("class X: ...", ["odd:X is not a plugin", "@trainer_core.plugin"]),
    "it answers nothing": (f"{HEAD}pass", ["odd:X answers no hook"]),
    "its hook is unknown": (
        f"{HEAD}@hookimpl\n    def reprot(self): ...",
        ["the hook reprot of odd:X (trainer-odd 3.2.1)", "no such hook (did you mean 'report'?)"],
    ),
    "its hook is one of a newer list": (
        f"{HEAD}@hookimpl\n    def rewind(self): ...",
        ["there is no such hook in trainer-core", "(trainer-odd 3.2.1 asks for trainer-core>=9)"],
    ),
    "its argument is misspelled": (
        f"{HEAD}@hookimpl\n    def report(self, setp): ...",
        ["the hook report of odd:X (trainer-odd 3.2.1)", "'setp' (did you mean 'step'?)"],
    ),
    "its misspelled argument has a default": (
        f"{HEAD}@hookimpl\n    def report(self, metrcis=None): ...",
        ["takes 'metrcis' (did you mean 'metrics'?)", "it has: run, step, metrics"],
    ),
    "its argument is one of a newer list": (
        f"{HEAD}@hookimpl\n    def report(self, wallclock): ...",
        ["takes 'wallclock', which that hook has not in trainer-core", "asks for trainer-core>=9"],
    ),
    "its argument is keyword-only": (
        f"{HEAD}@hookimpl\n    def report(self, *, step): ...",
        ["takes step by keyword only", "leave out the *"],
    ),
    "it takes whatever comes": (
        f"{HEAD}@hookimpl\n    def report(self, **kwargs): ...",
        ["takes **kwargs, which no hook fills", "run, step, metrics"],
    ),
    "the type of its setting is nowhere": (
        f"{HEAD}value: 'Missing' = 0\n    @hookimpl\n    def report(self): ...",
        ["odd:X (trainer-odd 3.2.1) has an attribute whose type", "name 'Missing' is not defined"],
    ),
    "its setting has no type": (
        f"{HEAD}value = setting(1.5)\n    @hookimpl\n    def report(self): ...",
        ["odd:X (trainer-odd 3.2.1): the setting value needs a type: `value: float ="],
    ),
    "its default is of another type": (
        f"{HEAD}value: float = '0.9'\n    @hookimpl\n    def report(self): ...",
        ['odd:X (trainer-odd 3.2.1): the default of value, "0.9", is not a finite number'],
    ),
    "it forgets self": (
        f"{HEAD}@hookimpl\n    def report(step, metrics): ...",
        ["the hook report of odd:X", "takes no self"],
    ),
    "it forgets that it wraps": (
        f"{HEAD}@hookimpl\n    def step(self):\n        return (yield)",
        ["the hook step of odd:X", "yields", "@hookimpl(wrapper=True)"],
    ),
    "it wraps and does not yield": (
        f"{HEAD}@hookimpl(wrapper=True)\n    def step(self): ...",
        ["is marked wrapper=True, and does not yield"],
    ),
    "it wraps and forgets to return": (
        f"{HEAD}@hookimpl(wrapper=True)\n    def restore(self):\n        state = yield",
        ["the hook restore of odd:X", "returns nothing", "`return answer`"],
    ),
    "it wraps in the old way": (
        f"{HEAD}@hookimpl(hookwrapper=True)\n    def step(self):\n        yield",
        ["write wrapper=True"],
    ),
    "its hook is no method": (
        f"{HEAD}import functools\n    report = hookimpl(functools.partial(print))",
        ["is a partial, not a plain method", "pluggy would not call it"],
    ),
}

Install = Callable[..., None]


@pytest.fixture
def install(user_file: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Return a function that installs a package: its metadata, and its modules."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(name: str, groups: packages.Groups, code: str = "", **more: str) -> None:
        packages.install(tmp_path, name, groups, **more)
        if code:
            user_file("odd.py", code + "\n")

    return make


ODD = {"trainer.plugins": {"odd": "odd:X"}}


def refused(*overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_config(None, overrides)
    return str(caught.value)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_of_a_package_is_named_where_it_is_chosen_and_stops_nobody_else(
    install: Install, mistake: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = MISTAKES[mistake]
    install("trainer-odd", ODD, code, requires="trainer-core>=9")
    # Nobody named it.
    load_config()
    for arguments in (["--help"], ["plugins"], ["train", "--help"], ["explain", "config"]):
        assert run(arguments) == 0
    assert "odd" not in sys.modules
    capsys.readouterr()
    # Somebody looks whether it is whole.
    assert run(["plugins", "--check", "--json"]) == 1
    listed = {each["name"]: each for each in json.loads(capsys.readouterr().out)["plugins"]}
    assert (listed["odd"]["state"], listed["adamw"]["state"]) == ("broken", "ok, default")
    sys.modules.pop("odd", None)
    # Somebody named it.
    message = refused("plugins.odd={}")
    assert message.startswith("[plugins.odd] (command line): ")
    assert "3.2.1" in message or "odd:X" in message
    for text in (message, listed["odd"]["error"]):
        places = [text.find(part) for part in said]
        assert -1 not in places, text
        assert places == sorted(places)
        assert "\n" not in text


def test_an_entry_point_that_names_no_module_says_so(install: Install) -> None:
    install("trainer-odd", {"trainer.plugins": {"odd": "nowhere.at.all:X", "bare": ""}})
    message = refused("plugins.odd={}")
    assert "'odd' of trainer-odd 3.2.1 cannot be loaded from nowhere.at.all:X" in message
    assert "there is no module 'nowhere'" in message
    assert "expected an import path" in refused("plugins.bare={}")


def test_an_argument_of_another_version_with_a_default_is_a_notice(install: Install) -> None:
    install(
        "trainer-odd",
        ODD,
        f"{HEAD}@hookimpl\n    def report(self, step, wallclock=0): ...",
        requires="trainer-core>=0.1",
    )
    (notice,) = load_config(None, ["plugins.odd={}"]).notices
    assert "the hook report of odd:X (trainer-odd 3.2.1) takes 'wallclock'" in notice
    assert notice.endswith("asks for trainer-core>=0.1): it is always 0 there")


def test_a_plugin_of_an_older_hook_list_goes_on_working(
    install: Install, recipe: Any, tmp_path: Path
) -> None:
    """It names fewer arguments than there are now, and fewer hooks."""
    code = f"{HEAD}seen = None\n    @hookimpl\n    def report(self, step):\n        X.seen = step"
    install("trainer-odd", ODD, code, requires="trainer-core")
    fit(recipe(plugins={"progress": False, "odd": {}}))
    assert sys.modules["odd"].X.seen == 4


def test_a_hook_of_another_version_may_be_marked_as_optional(install: Install) -> None:
    code = (
        f"{HEAD}@hookimpl(optionalhook=True)\n    def rewind(self): ...\n"
        "    @hookimpl\n    def report(self): ..."
    )
    install("trainer-odd", ODD, code)
    assert load_config(None, ["plugins.odd={}"]).notices == ()


def test_a_hook_that_is_none_of_these_but_loses_an_answer_is_told_of_with_who_wraps_it(
    install: Install, recipe: Any
) -> None:
    code = (
        f"{HEAD}@hookimpl(wrapper=True)\n    def build_data(self):\n        answer = yield\n"
        "        if not answer:\n            return answer"
    )
    install("trainer-odd", ODD, code)
    with pytest.raises(UserError) as caught:
        fit(recipe(plugins={"odd": {}}))
    assert "the hook build_data of [plugins.odd] odd (trainer-odd 3.2.1)" in str(caught.value)
    assert "does each wrapper return it?" in str(caught.value)


def test_a_wrapper_of_evaluate_returns_all_answers(install: Install, recipe: Any) -> None:
    code = f"{HEAD}@hookimpl(wrapper=True)\n    def evaluate(self):\n        return (yield)[0]"
    install("trainer-odd", ODD, code)
    with pytest.raises(UserError, match="a wrapper returns the list of all answers") as caught:
        fit(recipe(plugins={"odd": {}}))
    assert "the hook evaluate, wrapped by [plugins.odd] odd (trainer-odd 3.2.1)" in str(
        caught.value
    )


# ------------------------------------------------------------------ twice there


def test_two_packages_with_one_name_are_both_named_and_either_can_be_chosen(
    install: Install, user_file: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    install("trainer-odd", ODD, f"{HEAD}@hookimpl\n    def report(self): ...")
    install("Trainer.Even", {"trainer.plugins": {"odd": "even:X"}}, version="2.0")
    user_file("even.py", f"{HEAD}@hookimpl\n    def report(self): ...")
    message = refused("plugins.odd={}")
    assert "'odd' is offered by Trainer.Even 2.0, trainer-odd 3.2.1" in message
    assert 'say which: "Trainer.Even:odd" or "trainer-odd:odd"' in message
    config = load_config(None, ['plugins.odd.use="trainer-even:odd"'])
    assert config.chosen["plugins.odd"].candidate.target == "even:X"
    assert run(["plugins", "--json"]) == 0
    states = [
        (each["distribution"], each["state"])
        for each in json.loads(capsys.readouterr().out)["plugins"]
        if each["name"] == "odd"
    ]
    assert states == [
        ("Trainer.Even", 'use "Trainer.Even:odd"'),
        ("trainer-odd", 'use "trainer-odd:odd"'),
    ]


def test_an_editable_beside_a_wheel_is_the_one_that_python_imports_and_the_other_is_told_of(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    wheel = tmp_path / "site"
    wheel.mkdir()
    (wheel / "odd.py").write_text("raise OSError('the wheel was imported')\n")
    packages.install(wheel, "trainer-odd", ODD, version="1.0")
    monkeypatch.setattr(sys, "path", [*sys.path, str(wheel)])
    install("trainer-odd", ODD, f"{HEAD}@hookimpl\n    def report(self): ...", version="2.0")
    chosen = load_config(None, ["plugins.odd={}"]).chosen["plugins.odd"]
    assert chosen.candidate.origin == "trainer-odd 2.0"
    assert Path(sys.modules["odd"].__file__ or "").parent == tmp_path
    assert run(["plugins", "--json"]) == 0
    (note,) = json.loads(capsys.readouterr().out)["notes"]
    assert note.startswith(f"trainer-odd is installed more than once: 2.0 in {tmp_path}")
    assert f"1.0 in {wheel}" in note


# ------------------------------------------------------------------ not what it should be


def test_a_group_that_this_core_has_not_is_told_of(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install("trainer-odd", {"trainer.optimisers": {"odd": "odd:X"}})
    assert run(["plugins"]) == 0
    assert "'odd' in trainer.optimisers, a group that this trainer-core has not" in (
        out := " ".join(capsys.readouterr().out.split())
    )
    assert "did you mean 'trainer.optimizers'?" in out


def test_a_name_in_another_group_is_found_there(install: Install) -> None:
    install("trainer-odd", {"trainer.optimizer": {"odd": "odd:X"}})
    with pytest.raises(UserError) as caught:
        load_config({"optimizer": {"use": "odd"}})
    said = "trainer-odd 3.2.1 registers 'odd' in trainer.optimizer, and [optimizer] is trainer.opt"
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "damage",
    [
        {"entry_points.txt": b"[trainer.plugins]\nodd\n[console_scripts]\nnothing\n"},
        {"entry_points.txt": b"\xff\xfe[trainer.plugins]\nodd = odd:X\n"},
        {"METADATA": b""},
        {"METADATA": b"\xff\xfe\n"},
    ],
)
def test_damaged_metadata_of_one_package_hides_no_other(
    install: Install, tmp_path: Path, damage: dict[str, bytes], capsys: Any
) -> None:
    install("trainer-odd", ODD)
    for name, content in damage.items():
        (tmp_path / "trainer_odd-3.2.1.dist-info" / name).write_bytes(content)
    os.utime(tmp_path, ns=(1, 1))  # as a new installation would
    assert run(["--help"]) == 0
    code, printed = run(["plugins", "--check"]), capsys.readouterr().out
    assert "adamw" in printed
    assert code == ("broken" in printed)
    assert load_config().chosen["optimizer"].candidate.distribution == "trainer-core"


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("raise OSError('no such library')", "OSError: no such library"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("SUMMARY = 'odd'", "it has no configure and no run"),
    ],
)
def test_a_broken_command_of_a_package_says_so_and_takes_no_other_away(
    install: Install, code: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    install("trainer-odd", {"trainer.commands": {"odd": "odd"}}, code)
    assert run(["--help"]) == 0
    helped = " ".join(capsys.readouterr().out.split())
    assert "checkpoint" in helped
    assert "the command 'odd' of trainer-odd 3.2.1 cannot be loaded from odd" in helped
    assert said in helped
    assert run(["odd"]) == 2
    assert f"cannot be loaded from odd: {said}" in " ".join(capsys.readouterr().err.split())
    assert run(["plugins", "--check", "--json"]) == 1
    rows = json.loads(capsys.readouterr().out)["plugins"]
    (row,) = [each for each in rows if each["name"] == "odd"]
    assert (row["slot"], row["state"]) == ("command", "broken")


def test_a_name_of_ours_that_another_package_has_too_stays_ours_where_it_is_the_default(
    install: Install,
) -> None:
    install("trainer-odd", {"trainer.optimizers": {"adamw": "odd:X"}})
    install("trainer-even", {"trainer.plugins": {"jsonl": "even:X"}})
    chosen = load_config(None, []).chosen
    assert chosen["optimizer"].candidate.distribution == "trainer-core"
    assert chosen["plugins.jsonl"].candidate.distribution == "trainer-core"
    said = refused("optimizer.use=adamw")
    assert "'adamw' is offered by trainer-core 0.1.0, trainer-odd 3.2.1; say which" in said


def test_a_command_of_two_packages_is_neithers(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install("trainer-odd", {"trainer.commands": {"odd": "odd"}})
    install("trainer-even", {"trainer.commands": {"odd": "even", "train": "even"}})
    assert run(["odd"]) == 2
    error = capsys.readouterr().err
    assert "offered by trainer-even 3.2.1 and trainer-odd 3.2.1" in " ".join(error.split())
    assert run(["train", "--help"]) == 0  # the core's own is not replaced


def test_of_two_versions_in_one_folder_none_is_said_to_be_the_one(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install("trainer-odd", ODD, version="1.0")
    install("trainer-odd", ODD, version="2.0")
    assert run(["plugins", "--json"]) == 0
    (note,) = json.loads(capsys.readouterr().out)["notes"]
    assert "beside it; which of them is imported is not known" in note
    assert {"1.0", "2.0"} <= set(note.split())


# ------------------------------------------------------------------ many


@pytest.fixture
def hundred(install: Install) -> None:
    """A hundred packages, each with a plugin and a description of ten thousand characters."""
    for index in range(100):
        groups = {"trainer.plugins": {f"many{index}": f"many{index}:X"}}
        install(f"trainer-many-{index}", groups, requires=f"trainer-core\n\n{'text ' * 2000}")


def test_the_metadata_of_a_package_is_read_once_for_all_slots(
    hundred: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def noted(distribution: Any, name: str) -> str:
        read.append(f"{distribution._path}/{name}")
        return text_of(distribution, name)

    text_of = installed._text
    monkeypatch.setattr(installed, "_text", noted)
    installed._read.cache_clear()
    load_config()
    assert len(candidates(PLUGINS)) >= 100
    for slot in SLOTS.values():
        candidates(slot)
    assert len([each for each in read if "trainer_many" in each]) == 200  # two files of each
    assert len(set(read)) == len(read)


def test_a_hundred_packages_take_less_than_20_ms_more(hundred: None) -> None:
    def seconds() -> float:  # of the processor: by the clock it depends on what else goes on
        installed._read.cache_clear()
        begun = time.process_time()
        installed.everything()
        return time.process_time() - begun

    assert min(seconds() for _ in range(5)) < 0.02


# ------------------------------------------------------------------ without any


def test_no_plugins_leaves_the_core_alone(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install("trainer-odd", ODD | {"trainer.commands": {"odd": "odd"}}, "raise OSError")
    assert run(["--no-plugins", "plugins", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {each["distribution"] for each in found["plugins"]} == {"trainer-core"}
    assert "adamw" in {each["name"] for each in found["plugins"]}
    assert run(["--no-plugins", "--help"]) == 0
    assert "odd" not in capsys.readouterr().out.replace("model", "")
    for arguments, said in (
        (["odd"], "the command 'odd' comes with trainer-odd 3.2.1, which --no-plugins leaves out"),
        (
            ["explain", "config", *PERCEPTRON, "checkpoint.use=none", "plugins.odd={}"],
            "'odd' comes with trainer-odd 3.2.1, which --no-plugins leaves out",
        ),
        (
            ["train"],
            "[model] use = \"nnx\" (default): 'nnx' comes with trainer-nnx-plugin",
        ),
    ):
        assert run(["--no-plugins", *arguments]) == 2
        assert said in " ".join(capsys.readouterr().err.split())
    assert not core_alone()
    assert NO_PLUGINS not in os.environ


def test_no_plugins_after_the_command_is_told_where_it_belongs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["train", "--no-plugins", "run.steps=1"]) == 2
    assert "before the command: `trainer --no-plugins train ...`" in capsys.readouterr().err


def test_no_plugins_trains_with_what_the_recipe_itself_imports(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [*PERCEPTRON, "checkpoint.use=none", "run.steps=1", "run.eval_every=0"]
    assert run(["--no-plugins", "train", *settings]) == 0
    assert "step 1/1" in capsys.readouterr().out


# ------------------------------------------------------------------ real wheels, a real venv

TAME = """
import optax
from trainer_core import hookimpl, plugin

@plugin
class Tame:
    @hookimpl
    def build_optimizer(self, learning_rate):
        return optax.sgd(learning_rate)
"""


@pytest.fixture(scope="module")
def environment_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with three real wheels: one is whole, one is broken, one misspells a hook.

    What this environment has is added at its end of sys.path, as a system's packages would be.
    """
    folder = tmp_path_factory.mktemp("wheels")
    made = [
        packages.wheel(
            folder,
            "trainer-tame",
            {"trainer.optimizers": {"tame": "tame:Tame"}},
            "1.2.0",
            {"tame.py": TAME},
        ),
        packages.wheel(
            folder,
            "trainer-broken",
            {
                "trainer.optimizers": {"broken": "broken_of_trainer:X"},
                "trainer.commands": {"broken": "broken_of_trainer"},
            },
            "0.9",
            {"broken_of_trainer.py": "raise OSError('no such library')\n"},
        ),
        packages.wheel(
            folder,
            "trainer-misspelled",
            {"trainer.plugins": {"misspelled": "misspelled:X"}},
            "0.1",
            {"misspelled.py": f"{HEAD}@hookimpl\n    def report(self, setp=0): ...\n"},
        ),
    ]
    place = folder / "venv"
    uv = shutil.which("uv")
    venv.create(place, with_pip=uv is None)
    pip(place, uv, "install", "--no-index", "--no-deps", *map(str, made))
    site = next(place.glob("lib/python*/site-packages"))
    ours = sysconfig.get_paths()["purelib"]
    (site / "beside.pth").write_text(f"import site; site.addsitedir({ours!r})\n")
    return place


def pip(place: Path, uv: str | None, command: str, *arguments: str) -> None:
    """Install or uninstall there: by uv where that is at hand, which takes a tenth of the time."""
    python = str(place / "bin" / "python")
    with_uv = [uv, "pip", command, "--quiet", "--python", python]
    with_pip = [python, "-m", "pip", command, "--quiet"]
    if uv is None and command == "uninstall":
        with_pip.append("--yes")
    subprocess.run([*(with_uv if uv else with_pip), *arguments], check=True)


def in_environment(place: Path, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [place / "bin" / "python", "-c", "from trainer_core.cli import main; main()", *arguments],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.long  # six processes; each promise is kept in-process above, too
def test_real_wheels_are_listed_checked_used_and_missed_once_they_are_gone(
    environment_of_its_own: Path, tmp_path: Path
) -> None:
    place = environment_of_its_own

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        return in_environment(place, *arguments, folder=tmp_path)

    helped = call("--help")
    assert (helped.returncode, helped.stderr) == (0, "")
    assert "the command 'broken' of trainer-broken 0.9 cannot be" in helped.stdout
    rows = json.loads(call("plugins", "--check", "--json").stdout)["plugins"]
    states = {(each["distribution"], each["name"], each["version"]): each["state"] for each in rows}
    assert states["trainer-tame", "tame", "1.2.0"] == "ok"
    assert states["trainer-broken", "broken", "0.9"] == "broken"
    assert states["trainer-misspelled", "misspelled", "0.1"] == "broken"

    settings = [*PERCEPTRON, "run.steps=1", "run.eval_every=0", "optimizer.use=tame"]
    trained = call("train", *settings)
    assert trained.returncode == 0, trained.stderr
    pip(place, shutil.which("uv"), "uninstall", "trainer-tame")
    for again in (["train", *settings, "run.steps=2"], ["evaluate", "runs/default"]):
        gone = call(*again)
        assert gone.returncode == 2
        error = " ".join(gone.stderr.split())
        assert "no installed package offers 'tame'" in error
        assert (
            "the run in runs/default was made with it, from trainer-tame 1.2.0: "
            "`pip install trainer-tame==1.2.0`"
        ) in error
