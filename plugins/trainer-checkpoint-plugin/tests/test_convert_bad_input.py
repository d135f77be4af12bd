"""What does not fit is one error, with every path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import optax
import pytest
from converted import numbers, planned, run_of, saved
from trainer_checkpoint.convert.mapping import Mapping
from trainer_checkpoint.convert.planning import make_plan

from trainer_core.errors import UserError

NO_STATE = optax.sgd(0.1)
PARAMS = {"embed": numbers(8, 4), "layers": {"w": numbers(3, 4, 4)}}
RUN = run_of(PARAMS, NO_STATE, {"stats": {"mean": numbers(4)}}, stacks={"layers/w": 0})
LAYERS = {f"layers_{n}": {"w": numbers(4, 4)} for n in range(3)}
GOOD = {"embed": numbers(8, 4), **LAYERS}
STATS = {"stats": {"mean": numbers(4)}}


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in GOOD.items() if key != name}


def test_what_fits_is_no_error(tmp_path: Path) -> None:
    planned(saved(tmp_path / "old", {"params": GOOD, **STATS, "step": 1}), RUN)


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        (
            {"params": GOOD | {"embed": numbers(9, 4)}, **STATS},
            ["different: 1 ", "params/embed is float32[9, 4], params/embed needs float32[8, 4]"],
        ),
        (
            {"params": without("layers_2"), **STATS},
            [
                "different: 1 ",
                "params/layers_{0..1}/w is 2 x float32[4, 4]",
                "[2, 4, 4] is not [3",
                "The checkpoint has 2 layers and the run stacks 3;",
            ],
        ),
        (
            {"params": {"embed": numbers(8, 4), "layers": {"w": numbers(2, 4, 4)}}, **STATS},
            ["[2, 4, 4] is not [3, 4, 4]", "The checkpoint has 2 layers and the run stacks 3;"],
        ),
        (
            {"params": without("layers_1"), **STATS},
            ["unexpected: 2 ", "params/{layers_0,layers_2}/w", "layer 1 is missing", "missing: 1 "],
        ),
        ({"params": GOOD}, ["missing: 1 ", "buffers/stats/mean float32[4]"]),
        (
            {"params": GOOD | {"embed": numbers(8, 4).astype("float16")}, **STATS},
            ["different: 1 ", "float16 is not float32; `cast = true`"],
        ),
        (
            {"params": GOOD | {"layers_1": {"w": numbers(4, 5)}}, **STATS},
            ["the layers have different shapes"],
        ),
        (
            {"params": {("embed",): numbers(8, 4), ("layers_0", "w"): numbers(4, 4)}, **STATS},
            ["unexpected: 2 ", "params/('embed',)", "missing: 2 ", "params/embed"],
        ),
        (
            {"params": GOOD, "opt_state": [{"mini_step": 0}], **STATS},
            ["unexpected: 1 ", "it has mini_step, and the run needs nothing more"],
        ),
        (
            {"params": GOOD | {f"extra_{n}": numbers(1) for n in range(25)}, **STATS},
            ["unexpected: 25 ", "params/extra_{0..24} float32[1]"],
        ),
        (
            {"params": GOOD | {"layers": [{"w": numbers(4, 4)}]}, **STATS},
            ["there are two such layers"],
        ),
    ],
    ids=[
        "vocabulary",
        "depth",
        "depth of a stack",
        "a hole",
        "a collection",
        "dtype",
        "a layer",
        "tuple keys",
        "an optimizer",
        "many",
        "twice",
    ],
)
def test_everything_that_stands_against_it_is_said(
    tree: Any, said: list[str], tmp_path: Path
) -> None:
    with pytest.raises(UserError) as error:
        planned(saved(tmp_path / "old", tree | {"step": 1}), RUN)
    assert error.value.exit_code == 2
    assert "nothing was written" in str(error.value)
    for text in said:
        assert text in str(error.value)


def test_two_runs_are_told_apart_by_their_configs_first() -> None:
    ours, other = (
        attrs.evolve(run_of({"a": numbers(width)}, NO_STATE), config={"model": {"width": width}})
        for width in (2, 3)
    )
    with pytest.raises(UserError) as error:
        make_plan(ours, other, Mapping(), fresh_optimizer=False)
    assert str(error.value).splitlines()[1:4] == [
        "It was written with another config:",
        "  model.width: 2 -> 3",
        "different: 1 (of another shape or dtype)",
    ]


def test_a_stack_for_unstacked_layers_of_another_depth(tmp_path: Path) -> None:
    run = run_of({"layers": {str(n): {"w": numbers(4, 4)} for n in range(4)}}, NO_STATE)
    with pytest.raises(UserError, match="not a stack of 4 layers on axis 0"):
        planned(saved(tmp_path / "old", {"params": {"layers": PARAMS["layers"]}, "step": 1}), run)


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("to = 'embd'", "sends it to embd, which is not there"),
        ("to = 'embed'\ntranspose = [2, 1, 0]", r"transpose = \[2, 1, 0\] needs 3 axes"),
        ("split = {axis = 5, into = ['embed', 'layers/w']}", r"\[8, 4\] has no axis 5"),
        ("split = {axis = 0, into = ['embed', 'layers/w']}", "axis 0 has size 8, and the parts"),
        ("to = 'layers/w'", "its target layers/w is that of"),
        ("to = 'layers/w'\nreshape = true", "its target layers/w is that of"),
    ],
)
def test_a_rule_that_cannot_be_followed(rule: str, said: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "old", {"params": GOOD, **STATS, "step": 1})
    with pytest.raises(UserError, match=said):
        planned(path, RUN, f"[[rule]]\nfrom = 'embed'\n{rule}")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[rule]]\nfrom = 'embd'\nto = 'embed'", "from = 'embd': it fits nothing"),
        ("[[rule]]\nfrom = 'none/.*'\ndrop = true", "from = 'none/.*': it fits nothing"),
        ("fresh = ['haed/.*']", "fresh = ['haed/.*']: the run has nothing of this name"),
    ],
)
def test_what_a_mapping_says_of_nothing_is_noted(text: str, said: str, tmp_path: Path) -> None:
    """Everything else fits by equal names: a misspelled rule is not left out in silence."""
    old = saved(tmp_path / "old", {"params": GOOD, **STATS, "step": 1})
    assert [note for note in planned(old, RUN, text).idle if said in note]


def test_a_part_that_is_missing_in_a_layer(tmp_path: Path) -> None:
    run = run_of({"layers": {"qk": numbers(2, 4, 8)}}, NO_STATE, stacks={"layers/qk": 0})
    params = {f"h_{n}": {"q": numbers(4, 4), "k": numbers(4, 4)} for n in range(2)}
    del params["h_1"]["k"]
    rule = r"""
        [[rule]]
        from = 'h_(?P<layer>\d)/(?P<part>q|k)'
        to = 'layers/qk'
        fuse = {axis = -1, parts = ["q", "k"]}
        """
    with pytest.raises(UserError, match="layer 1 k is missing beside it"):
        planned(saved(tmp_path / "old", {"params": params, "step": 1}), run, rule)
