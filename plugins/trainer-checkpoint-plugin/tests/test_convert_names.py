"""Which arrays go together: by themselves, and by the rules of a mapping."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from converted import numbers, planned, run_of, saved, there_and_back
from trainer_checkpoint import stored
from trainer_checkpoint.convert.described import described_checkpoint, step_of

from trainer_core.errors import UserError

NO_STATE = optax.sgd(0.1)
LAYERS = [numbers(4, 6, seed=layer) for layer in range(11)]
STACKED = np.stack(LAYERS)
STACKED_RUN = run_of({"layers": {"w": STACKED}}, NO_STATE, stacks={"layers/w": 0})
UNROLLED_RUN = run_of({"layers": {str(n): {"w": w} for n, w in enumerate(LAYERS)}}, NO_STATE)


def checkpoint(tmp_path: Path, params: Any) -> Path:
    return saved(tmp_path / "old", {"params": params, "step": 3})


@pytest.mark.parametrize(
    "params",
    [
        {"layers": {str(n): {"w": w} for n, w in enumerate(LAYERS)}},
        {f"layers_{n}": {"w": w} for n, w in enumerate(LAYERS)},
        {"layers": [{"w": w} for w in LAYERS]},
        {"layers": dict(enumerate({"w": w} for w in LAYERS))},
        {"layers": {"w": STACKED}},
        {"params": {f"layers_{n}": {"w": w} for n, w in enumerate(LAYERS)}},
        {f"layers_{n}": {"w": {"value": w}} for n, w in enumerate(LAYERS)},
    ],
    ids=["numbers", "names", "a list", "integer keys", "stacked", "params twice", "boxes"],
)
def test_layers_of_any_form_find_their_place_by_themselves(params: Any, tmp_path: Path) -> None:
    path = checkpoint(tmp_path, params)
    assert np.array_equal(there_and_back(path, STACKED_RUN)["params/layers/w"], STACKED)
    unrolled = there_and_back(path, UNROLLED_RUN)
    for number, layer in enumerate(LAYERS):  # the tenth after the ninth, not after the first
        assert np.array_equal(unrolled[f"params/layers/{number}/w"], layer)


def test_layers_are_stacked_on_the_axis_that_the_run_says(tmp_path: Path) -> None:
    run = run_of({"layers": {"w": np.stack(LAYERS, 1)}}, NO_STATE, stacks={"layers/w": 1})
    path = checkpoint(tmp_path, {f"layers_{n}": {"w": w} for n, w in enumerate(LAYERS)})
    assert np.array_equal(there_and_back(path, run)["params/layers/w"], np.stack(LAYERS, 1))


@pytest.mark.parametrize("scan", [True, False])
def test_a_rule_renames_and_stacks_or_keeps_the_number(scan: bool, tmp_path: Path) -> None:
    path = checkpoint(tmp_path, {"model": {f"h{n}": {"mlp": w} for n, w in enumerate(LAYERS)}})
    to = "layers/w" if scan else "layers/{layer}/w"
    rule = rf"""
        prefix = "params/model/"
        [[rule]]
        from = 'h(?P<layer>\d+)/mlp'
        to = '{to}'
        """
    made = there_and_back(path, STACKED_RUN if scan else UNROLLED_RUN, rule)
    assert np.array_equal(
        made["params/layers/w" if scan else "params/layers/10/w"], STACKED if scan else LAYERS[10]
    )


def test_a_rule_unstacks(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, {"blocks": {"mlp": np.stack(LAYERS, 1)}})
    rule = "[[rule]]\nfrom = 'blocks/mlp'\nto = 'layers/{layer}/w'\nstack_axis = 1"
    assert np.array_equal(
        there_and_back(path, UNROLLED_RUN, rule)["params/layers/10/w"], LAYERS[10]
    )


def test_the_first_rule_that_matches_wins(tmp_path: Path) -> None:
    run = run_of({"a": numbers(2), "b": numbers(2)}, NO_STATE)
    path = checkpoint(tmp_path, {"x": numbers(2, seed=1), "y": numbers(2, seed=2)})
    rules = "[[rule]]\nfrom = 'x'\nto = 'b'\n[[rule]]\nfrom = '.'\nto = 'a'"
    made = there_and_back(path, run, rules)
    assert np.array_equal(made["params/a"], numbers(2, seed=2))
    assert np.array_equal(made["params/b"], numbers(2, seed=1))


@pytest.mark.parametrize("stacked", [True, False])
def test_a_fused_kernel_is_split_transposed_and_reshaped(stacked: bool, tmp_path: Path) -> None:
    q, k = numbers(3, 8, 4, 2, seed=1), numbers(3, 8, 1, 2, seed=2)
    names = ["layers/q", "layers/k"] if stacked else ["layers/{layer}/q", "layers/{layer}/k"]
    layers: dict[str, Any] = {"q": q, "k": k}
    if not stacked:
        layers = {str(n): {"q": q[n], "k": k[n]} for n in range(3)}
    run = run_of({"layers": layers}, stacks={"layers/q": 0, "layers/k": 0} if stacked else None)
    fused = np.concatenate([q.reshape(3, 8, 8), k.reshape(3, 8, 2)], -1).transpose(0, 2, 1)
    params = {f"h_{n}": {"qk": fused[n]} for n in range(3)}
    tree = {"params": params, "opt_state": momentum_of(params), "step": 3}
    rule = rf"""
        [[rule]]
        from = 'h_(?P<layer>\d)/qk'
        transpose = [1, 0]
        reshape = true
        split = {{axis = 1, into = {names}}}
        """
    made = there_and_back(saved(tmp_path / "old", tree), run, rule)
    for part in ("params", "opt_state/0/trace"):
        found = made[f"{part}/layers/q"] if stacked else made[f"{part}/layers/2/q"]
        assert np.array_equal(found, q if stacked else q[2])


def momentum_of(params: Any) -> Any:
    return [{"trace": params}]


def test_parts_are_fused_in_the_order_that_the_rule_says(tmp_path: Path) -> None:
    q, k = numbers(3, 8, 4, seed=1), numbers(3, 8, 2, seed=2)
    fused = np.concatenate([q, k], -1)
    run = run_of({"layers": {"qk": fused}}, NO_STATE, stacks={"layers/qk": 0})
    path = checkpoint(tmp_path, {f"h_{n}": {"q": q[n], "k": k[n]} for n in range(3)})
    rule = r"""
        [[rule]]
        from = 'h_(?P<layer>\d)/(?P<part>q|k)'
        to = 'layers/qk'
        fuse = {axis = -1, parts = ["q", "k"]}
        """
    assert np.array_equal(there_and_back(path, run, rule)["params/layers/qk"], fused)


def test_what_is_dropped_is_said(tmp_path: Path) -> None:
    run = run_of({"a": numbers(2)})
    params = {"a": numbers(2), "old": numbers(5)}
    tree = {"params": params, "opt_state": momentum_of(params), "ema": {"a": 1.0}, "step": 1}
    rules = "[[rule]]\nfrom = 'old|ema/.*'\ndrop = true"
    plan = planned(saved(tmp_path / "old", tree), run, rules)
    assert sorted(plan.dropped) == ["ema/a", "opt_state/0/trace/old", "params/old"]
    assert sorted(plan.inverse().absent) == sorted(plan.dropped)


def test_a_buffer_needs_no_rule_for_its_collection(tmp_path: Path) -> None:
    run = run_of(
        {"norm": {"scale": numbers(2, 3)}},
        NO_STATE,
        {"norm": {"mean": numbers(2, 3)}, "seen": numbers(1)},
        stacks={"norm/scale": 0, "norm/mean": 0},
    )
    tree = {
        "params": {f"norm_{n}": {"scale": numbers(3)} for n in range(2)},
        "batch_stats": {f"norm_{n}": {"mean": numbers(3, seed=n)} for n in range(2)},
        "counts": {"seen": numbers(1)},
        "step": 1,
    }
    found = there_and_back(saved(tmp_path / "old", tree), run)
    assert np.array_equal(found["buffers/norm/mean"][1], numbers(3, seed=1))
    assert "buffers/seen" in found
    by_rule = "[[rule]]\nfrom = 'counts/(?P<path>.*)'\nto = '{path}'"
    assert "buffers/seen" in there_and_back(tmp_path / "old", run, by_rule)


def test_a_buffer_is_never_taken_for_a_parameter(tmp_path: Path) -> None:
    """An average of the parameters has their names, in a collection beside them."""
    tree = {"ema": {"a": numbers(2)}, "params": {"b": numbers(2)}, "step": 1}
    with pytest.raises(UserError) as error:
        planned(saved(tmp_path / "old", tree), run_of({"a": numbers(2)}, NO_STATE))
    assert "missing: 1 " in str(error.value)
    assert "unexpected: 2 " in str(error.value)


def test_the_module_of_a_buffer_is_never_taken_for_a_collection(tmp_path: Path) -> None:
    tree = {"buffers": {"norm": {"mean": numbers(2)}}, "params": {"a": numbers(2)}, "step": 1}
    run = run_of({"a": numbers(2)}, NO_STATE, {"mean": numbers(2)})
    with pytest.raises(UserError, match=r"(?s)missing: 1 .*unexpected: 1 "):
        planned(saved(tmp_path / "old", tree), run)


def test_the_step_is_said_by_the_checkpoint_its_folder_or_the_user(tmp_path: Path) -> None:
    def step(path: Path, given: int | None = None) -> int | None:
        found = stored.look(path)
        return step_of(found, described_checkpoint(found, None, ()), given)

    inside = checkpoint(tmp_path, {"a": numbers(2)})
    assert step(inside) is None
    with pytest.raises(UserError, match="has its own, in step"):
        step(inside, 4)
    with ocp.CheckpointManager(tmp_path / "managed") as manager:
        manager.save(12, args=ocp.args.PyTreeSave({"params": {"a": numbers(2)}}))
    assert step(tmp_path / "managed") == 12
    bare = saved(tmp_path / "bare", {"params": {"a": numbers(2)}})
    assert step(bare, 4) == 4
    with pytest.raises(UserError, match="give --step N"):
        step(bare)


def test_dtypes_change_only_where_the_mapping_says_so(tmp_path: Path) -> None:
    run = run_of({"a": numbers(2).astype("float32")}, NO_STATE)
    path = checkpoint(tmp_path, {"a": numbers(2).astype("bfloat16")})
    with pytest.raises(UserError, match="bfloat16 is not float32; `cast = true`"):
        planned(path, run)
    assert there_and_back(path, run, "cast = true")["params/a"].dtype == np.float32


@pytest.mark.parametrize(
    ("mapping", "said"),
    [
        ("[[rules]]", r"no key 'rules' \(did you mean 'rule'\?\)"),
        ("[[rule]]\nto = 'a'", "rule 1 of .* needs from"),
        ("[[rule]]\nfrom = '('\nto = 'a'", "no regular expression"),
        ("[[rule]]\nfrom = 'a'", "needs one of"),
        ("[[rule]]\nfrom = 'a'\nto = 'b'\ndrop = true", "needs one of"),
        ("[[rule]]\nfrom = 'a'\nto = '{b}'", r"\{b\}, and the pattern has no group"),
        ("[[rule]]\nfrom = 'a'\nto = 'b'\ntranspose = [1, 2]", "transpose is the new order"),
        ("[[rule]]\nfrom = 'a'\nsplit = ['b']", "expected split = {axis"),
        ("[[rule]]\nfrom = 'a'\nto = 'b'\nfuse = {parts = ['q']}", "fuse needs a group"),
        ("[[rule]]\nfrom = 'a'\nto = 'b'\nreshape = 1", "expected true or false"),
        ("prefix = 3", "expected a string"),
        ("fresh = 'a'", "fresh lists regular expressions"),
        ("fresh = ['(']", "fresh is no regular expression"),
        ("prefix = 'params/other'", "no array's path begins with"),
        ("a =", "cannot be read"),
    ],
)
def test_a_mapping_that_makes_no_sense_is_named(mapping: str, said: str, tmp_path: Path) -> None:
    path = checkpoint(tmp_path, {"a": numbers(2)})
    with pytest.raises(UserError, match=said):
        planned(path, run_of({"a": numbers(2)}, NO_STATE), mapping)


def test_the_mapping_in_the_readme_does_what_it_says(tmp_path: Path) -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    mapping = readme.partition("# file: names.toml\n")[2].partition("```")[0]
    layer = {
        "ln": {"scale": numbers(4).astype("bfloat16")},
        "gate": {"weight": numbers(6, 4)},
        "up": {"weight": numbers(6, 4)},
        "kv": {"kernel": numbers(4, 12)},
        "a": {"kernel": numbers(4, 2)},
        "b": {"kernel": numbers(4, 3)},
    }
    model = {f"layer_{n}": layer for n in range(2)} | {"blocks": {"bias": numbers(4, 2)}}
    model["dropout"] = {"rngs": {"key": np.zeros(2, np.uint32)}}
    layers = {
        "attention_norm": {"scale": numbers(2, 4)},
        "attention": {name: {"kernel": numbers(2, 4, 2, 3)} for name in ("key", "value")},
        "mlp": {name: {"kernel": numbers(2, 4, 6)} for name in ("gate", "up")},
        "fused": {"kernel": numbers(2, 4, 5)},
    }
    bias = {str(n): numbers(4) for n in range(2)}
    plan = planned(
        checkpoint(tmp_path, {"model": model}),
        run_of({"layers": layers, "bias": bias}, NO_STATE),
        mapping,
    )
    assert plan.dropped == ("params/model/dropout/rngs/key",)
