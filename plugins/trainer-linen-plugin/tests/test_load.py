"""From an import path and arguments in a recipe to a model, or one clear error."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from trainer_linen.plugin import Module

from trainer_core.errors import UserError

SOURCE = """
import jax.numpy as jnp
from flax import linen as nn
from trainer_core.types import Term

class Net(nn.Module):
    width: int
    depth: int = 1

    def setup(self):
        self.out = nn.Dense(self.width)

    def terms(self, batch):
        return {"size": Term(jnp.sum(self.out(batch["x"])), 1.0)}

class Silent(nn.Module):
    def __call__(self, batch):
        return batch

class Empty(nn.Module):
    def terms(self, batch):
        return {"size": Term(jnp.sum(batch["x"]), 1.0)}

class Straying(nn.Module):
    def terms(self, batch):
        return {"size": Term(jnp.sum(batch["y"]), 1.0)}

class Plain:
    pass

def made(width):
    return Net(width)

VALUE = 3
"""
BATCH = {"x": np.zeros((2, 3), np.float32)}


@pytest.fixture(autouse=True)
def module_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "linen_net.py").write_text(SOURCE)
    (tmp_path / "broken_linen_net.py").write_text("import not_installed_anywhere")
    monkeypatch.syspath_prepend(tmp_path)


def build(module: str, **settings: Any) -> Any:
    run: Any = SimpleNamespace(axes=SimpleNamespace(constrain=lambda x, names: x))
    return Module(module=module, **settings).build_state(run, BATCH)


@pytest.mark.parametrize("name", ["Net", "made"])
def test_a_class_or_a_function_makes_the_module(name: str) -> None:
    model = build(f"linen_net:{name}", arguments={"width": 4}, coefficients={"size": 0.5})
    assert model.params["out"]["kernel"].shape == (3, 4)
    assert model.summary["module"] == "Net"
    assert model.coefficient("size") == 0.5


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        ("linen_net", {}, r'\[model\] module = "linen_net": expected an import path'),
        ("linen_nets:Net", {}, r"there is no module 'linen_nets'"),
        ("linen_net:Nett", {}, r"linen_net has no 'Nett'.*did you mean 'Net'"),
        ("broken_linen_net:Net", {}, r"importing broken_linen_net raised ModuleNotFoundError"),
        ("linen_net:VALUE", {}, r"3 is not a class or a function"),
        ("linen_net:Net", {"widht": 4}, r"has no argument 'widht'.*'width'.*takes: width, depth$"),
        ("linen_net:Net", {}, r"needs width; write arguments = \{width = ...\}"),
        ("linen_net:Net", {"width": "wide"}, r"building the model raised TypeError"),
        ("linen_net:Plain", {}, r"is a Plain, not a flax.linen.Module"),
        ("linen_net:Silent", {}, r"Silent has no method terms\(self, batch\).*Term\(sum"),
        ("linen_net:Empty", {}, r"Empty has no parameters"),
        ("linen_net:Straying", {}, r"building the model raised KeyError: 'y'"),
    ],
)
def test_a_mistake_is_one_clear_error(module: str, arguments: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        build(module, arguments=arguments)
    assert not getattr(caught.value, "__notes__", [])
