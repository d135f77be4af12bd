"""From an import path and arguments in a recipe to a model, or one clear error."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from trainer_nnx.plugin import Module

from trainer_core.errors import UserError

SOURCE = """
import jax.numpy as jnp
from flax import nnx
from trainer_core.types import Term

class Net(nnx.Module):
    def __init__(self, width, depth=1, *, rngs):
        self.out = nnx.Linear(width, depth, rngs=rngs)

    def terms(self, batch):
        return {"size": Term(jnp.sum(self.out(batch["x"])), 1.0)}

class Anything(Net):
    def __init__(self, **options):
        super().__init__(options["width"], rngs=options["rngs"])

def made(width, rngs):
    return Net(width, rngs=rngs)

VALUE = 3
"""


@pytest.fixture(autouse=True)
def module_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_net.py").write_text(SOURCE)
    (tmp_path / "broken_net.py").write_text("import not_installed_anywhere")
    monkeypatch.syspath_prepend(tmp_path)


def build(module: str, **settings: Any) -> Any:
    run: Any = SimpleNamespace(axes=SimpleNamespace(constrain=lambda x, names: x))
    return Module(module=module, **settings).build_state(run)


@pytest.mark.parametrize("name", ["Net", "Anything", "made"])
def test_a_class_or_a_function_makes_the_module(name: str) -> None:
    model = build(f"own_net:{name}", arguments={"width": 4}, coefficients={"size": 0.5})
    assert model.params["out"]["kernel"].shape == (4, 1)
    assert model.summary["module"] == ("Anything" if name == "Anything" else "Net")
    assert model.coefficient("size") == 0.5


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        ("own_net", {}, r'\[model\] module = "own_net": expected an import path'),
        ("own_nets:Net", {}, r"there is no module 'own_nets'"),
        ("own_net:Nett", {}, r"own_net has no 'Nett'.*did you mean 'Net'"),
        ("broken_net:Net", {}, r"importing broken_net raised ModuleNotFoundError"),
        ("own_net:VALUE", {}, r"3 is not a class or a function"),
        ("own_net:Net", {"widht": 4}, r"has no argument 'widht'.*'width'.*it takes: width, depth"),
        ("own_net:Net", {}, r"needs width"),
        ("own_net:Net", {"width": "wide"}, r"building the model raised"),
        ("own_net:Anything", {}, r"building the model raised KeyError"),
        ("flax.nnx:Linear", {"in_features": 2, "out_features": 2}, r"Linear has no method terms"),
    ],
)
def test_a_mistake_is_one_clear_error(module: str, arguments: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        build(module, arguments=arguments)
    assert not getattr(caught.value, "__notes__", [])
