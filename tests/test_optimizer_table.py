"""What an optimizer does with each parameter: shown, recorded, and held to on resume."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import optax
import pytest
from programs import build, recipe

from trainer_core import UserError, cli, fit, hookimpl, plugin

pytestmark = pytest.mark.usefixtures("quick_compiles")

PATHS = ["gain", "hidden/bias", "hidden/kernel", "out/kernel"]


@plugin
class Silent:
    """An optimizer that tells nothing of itself."""

    @hookimpl
    def build_optimizer(self, learning_rate: Any) -> Any:
        return optax.adam(learning_rate)


@plugin
class Telling(Silent):
    rules: dict[str, str] = {}  # noqa: RUF012

    @hookimpl
    def describe_optimizer(self) -> Any:
        return {path: {"rule": self.rules.get(path, "adam")} for path in PATHS}


@plugin
class Wrong(Silent):
    @hookimpl
    def describe_optimizer(self) -> Any:
        return {path: {"rule": "adam"} for path in [*PATHS[1:], "outt/kernel"]}


def using(name: str, **settings: Any) -> Any:
    return {"use": f"test_optimizer_table:{name}", **settings}


@pytest.mark.parametrize("name", ["Silent", "Telling"])
def test_the_state_of_each_parameter_is_counted(name: str) -> None:
    table = build(recipe(optimizer=using(name))).program.optimizer_table
    assert [row.info.path for row in table] == PATHS
    for row in table:
        assert row.state_bytes == 2 * 4 * math.prod(row.info.shape)


def test_what_is_told_of_other_paths_is_refused() -> None:
    expected = r"these are none:\n  outt/kernel \(did you mean 'out/kernel'\?\)"
    with pytest.raises(UserError, match=expected + "$"):
        build(recipe(optimizer=using("Wrong")))


@pytest.mark.parametrize("optimizer", [[], ["optimizer.use=sgd"], ["optimizer.use=muon"]])
def test_it_is_explained_within_a_hundred_columns(
    optimizer: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["explain", "optimizer", *optimizer]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 100
    assert "layers/mlp/up/kernel" in shown
    assert cli.run(["explain", "optimizer", "--json", *optimizer]) == 0
    row = json.loads(capsys.readouterr().out)["layers/mlp/up/kernel"]
    assert (row["shape"], row["kind"]) == ([2, 128, 384], "matrix")


SAVING = {"checkpoint": {"use": "orbax", "every": 2}}


def test_a_run_is_held_to_the_rules_that_it_was_told(recipe: Any) -> None:
    fit(recipe(optimizer=using("Telling"), **SAVING))
    other = using("Telling", rules={"gain": "lion", "out/kernel": "lion"})
    changed = recipe(run={"steps": 6}, optimizer=other, **SAVING)
    with pytest.raises(UserError) as error:
        fit(changed, accept_changes=True)
    assert "\n  gain was adam, is lion\n  out/kernel was adam, is lion\nset" in str(error.value)


def test_an_optimizer_that_tells_nothing_may_get_another_name(recipe: Any) -> None:
    """As it does when it becomes a package: the state is the same."""
    fit(recipe(optimizer=using("Silent"), **SAVING))
    named = {"use": "optax", "transform": "optax:adam"}
    result = fit(recipe(run={"steps": 6}, optimizer=named, **SAVING), accept_changes=True)
    assert result.resumed_from == 4


def test_another_optimizer_can_be_looked_at_beside_a_run(
    recipe: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(recipe(optimizer={"use": "adamw"}, **SAVING))
    config = tmp_path / "run" / "config.toml"
    assert cli.run(["explain", "optimizer", str(config), "optimizer.use=sgd"]) == 0
    assert "sgd" in capsys.readouterr().out
