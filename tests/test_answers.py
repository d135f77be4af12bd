"""What a plugin answers is looked at, and the plugin named, before it goes wrong elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from programs import build, recipe

from trainer_core import UserError, fit
from trainer_core.errors import RunError

SOURCE = """
from trainer_core import hookimpl, plugin

@plugin
class Optimizer:
    @hookimpl
    def build_optimizer(self):
        return lambda grads: grads

@plugin
class Model:
    @hookimpl
    def build_state(self):
        return {}

@plugin
class Schedule:
    learning_rate: float = 0.1
    warmup: int = 0

    @hookimpl
    def build_schedule(self):
        return 0.1

@plugin
class Data:
    @hookimpl
    def build_data(self):
        return 3

@plugin
class Evaluation:
    @hookimpl
    def evaluate(self):
        return ANSWER
"""


@pytest.mark.parametrize(
    ("slot", "said"),
    [
        (
            "optimizer",
            '[optimizer] use = "answers:Optimizer": its build_optimizer returned the optax '
            "transformation as a function, "
            "which has no init and no update; was it meant to be called?",
        ),
        ("model", "its build_state returned the model as a dict, which has no init and no terms"),
        (
            "schedule",
            "its build_schedule returned the learning rate as a float, which has no",
        ),
        ("data", "its build_data returned the data as an int, which has no batch"),
    ],
)
def test_an_answer_of_another_kind_names_its_plugin(
    slot: str, said: str, user_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(user_file("answers.py", SOURCE).parent)
    with pytest.raises(UserError) as caught:
        build(recipe(**{slot: {"use": f"answers:{slot.capitalize()}"}}))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("[1, 2]", "returned [1, 2]; expected a dict of numbers by name"),
        ("{'bad': 'text'}", "the metric 'bad' is 'text'; expected a number"),
        ("{'grad_norm': 1.0}", "has the metric 'grad_norm', and there is one of that name"),
        ("{'eval_loss': 1.0}", "has the metric 'eval_loss', and there is one of that name"),
    ],
)
def test_an_evaluation_that_is_no_new_number_is_an_error(
    answer: str,
    said: str,
    user_file: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = SOURCE.replace("ANSWER", answer)
    monkeypatch.syspath_prepend(user_file("answers.py", source).parent)
    config: Any = recipe(run={"directory": str(tmp_path / "run"), "steps": 2})
    config["plugins"] = {"progress": False, "judge": {"use": "answers:Evaluation"}}
    with pytest.raises((UserError, RunError)) as caught:
        fit(config)
    assert said in str(caught.value)
