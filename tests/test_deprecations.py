"""What is to go from the hook list is said to whoever uses it, with what to write instead.

The list itself holds nothing deprecated now: these tests have one of their own.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

from trainer_core import hookspecs
from trainer_core.config import load_config
from trainer_core.deprecations import HookDeprecation, PluginDeprecation
from trainer_core.hooks import register
from trainer_core.plugin import hookspec
from trainer_core.terminal.errors import show_warnings

GOING = HookDeprecation("answer `report`", since="0.4", gone="0.5")
NO_DATA = HookDeprecation("read `run.data`", since="0.4", gone="0.6")


class OlderSpec(hookspecs.TrainerSpec):
    """The hook list with a hook and an argument that are to go."""

    @hookspec(warn_on_impl=GOING)
    def log(self, run: Any, line: str) -> None: ...

    @hookspec(warn_on_impl_args={"data": NO_DATA})
    def look(self, run: Any, data: Any) -> None: ...


PLUGINS = """\
from trainer_core import hookimpl, plugin

@plugin
class Logs:
    @hookimpl
    def log(self, line): ...

@plugin
class Looks:
    @hookimpl(wrapper=True)
    def look(self, data):
        return (yield)

@plugin
class New:
    @hookimpl
    def look(self, run):
        return run
"""


@pytest.fixture
def registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Return a function that registers plugins of an installed package with the older list."""
    (tmp_path / "out_of_date.py").write_text(PLUGINS)
    about = tmp_path / "trainer_old_plugin-3.2.1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: trainer-old-plugin\nVersion: 3.2.1\n"
    )
    offers = "".join(f"{each.lower()} = out_of_date:{each}\n" for each in ("Logs", "Looks", "New"))
    (about / "entry_points.txt").write_text(f"[trainer.plugins]\n{offers}")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(hookspecs, "TrainerSpec", OlderSpec)

    def register_plugins(*names: str) -> Any:
        return register(load_config({"plugins": {name: {} for name in names}}))

    yield register_plugins
    sys.modules.pop("out_of_date", None)


def test_a_plugin_that_answers_a_hook_which_is_to_go_is_named(
    registered: Callable[..., Any], tmp_path: Path
) -> None:
    with pytest.warns(PluginDeprecation) as said:
        registered("logs")
    (warning,) = said
    assert str(warning.message) == (
        "[plugins.logs] logs (trainer-old-plugin 3.2.1) answers the hook `log`, which is "
        "deprecated since trainer-core 0.4, gone in 0.5; answer `report`"
    )
    assert Path(warning.filename) == tmp_path / "out_of_date.py"
    assert "@hookimpl" in PLUGINS.splitlines()[warning.lineno - 1]


def test_a_plugin_that_takes_an_argument_which_is_to_go_is_named(
    registered: Callable[..., Any],
) -> None:
    with pytest.warns(PluginDeprecation) as said:
        registered("looks", "new")
    (warning,) = said
    assert str(warning.message) == (
        "[plugins.looks] looks (trainer-old-plugin 3.2.1) takes `data` in the hook `look`, which "
        "is deprecated since trainer-core 0.4, gone in 0.6; read `run.data`"
    )


def test_what_is_to_go_is_still_called(registered: Callable[..., Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PluginDeprecation)
        hooks = registered("logs", "looks")
    assert hooks.log(run=None, line="a") == []
    assert hooks.look(run=None, data=None) == []


class NewerSpec(OlderSpec):
    """The same with one more argument for a hook."""

    @hookspec
    def look(self, run: Any, data: Any, mesh: Any) -> None: ...


def test_a_new_argument_breaks_no_plugin(
    registered: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hookspecs, "TrainerSpec", NewerSpec)
    hooks = registered("looks", "new")
    assert hooks.look(run=3, data=None, mesh=None) == [3]


def test_every_plugin_is_named_where_there_are_several(registered: Callable[..., Any]) -> None:
    with pytest.warns(PluginDeprecation) as said:
        registered("logs", "looks")
    assert [str(each.message).partition(" ")[0] for each in said] == [
        "[plugins.logs]",
        "[plugins.looks]",
    ]


def test_a_plugin_that_uses_nothing_old_warns_of_nothing(registered: Callable[..., Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        registered("new")


def test_the_command_prints_it_in_the_style_of_its_errors(
    registered: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging.getLogger("trainer_core"), "propagate", True)  # put back after
    others: list[str] = []
    monkeypatch.setattr(warnings, "showwarning", lambda message, *_: others.append(str(message)))
    monkeypatch.setattr(logging.getLogger("trainer_core"), "handlers", [])
    show_warnings()
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        registered("logs")
        warnings.warn("of another kind", FutureWarning, stacklevel=1)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: [plugins.logs] logs (trainer-old-plugin 3.2.1) answers")
    assert line.endswith("out_of_date.py:5)")
    assert others == ["of another kind"]


# ---------------------------------------------------------------------------- the list of now


def overdue(spec: type[Any], now: str) -> list[str]:
    """Return the hooks of a list that should no longer be there, or have such arguments."""
    found = []
    for name in dir(spec):
        options = getattr(getattr(spec, name), "trainer_spec", None) or {}
        said = [options.get("warn_on_impl"), *(options.get("warn_on_impl_args") or {}).values()]
        if any(each is not None and Version(each.gone) <= Version(now) for each in said):
            found.append(name)
    return found


def test_what_was_to_be_gone_by_now_is_gone() -> None:
    assert overdue(hookspecs.TrainerSpec, version("trainer-core")) == []
    assert overdue(OlderSpec, "0.4.9") == []
    assert overdue(OlderSpec, "0.5.0") == ["log"]
    assert overdue(OlderSpec, "0.6.0") == ["log", "look"]
