"""One compiled step: it clips, updates, and leaves everything alone where it is not finite."""

from __future__ import annotations

import functools
import itertools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from programs import Parts, assert_bitwise_equal, build, host, recipe

from trainer_core import RunError, TrainState
from trainer_core.config import load_config
from trainer_core.loop import fit, train

pytestmark = [pytest.mark.usefixtures("quick_compiles"), pytest.mark.aside]

PLAIN = {"optimizer": {"use": "sgd", "momentum": 0.0}, "step": {"clip_norm": 0.0}}
COSINE = {"schedule": {"use": "cosine", "learning_rate": 0.1, "warmup": 2}, "run": {"steps": 8}}
SPOILED = {
    "the loss": ({"nan_loss": [1]}, "the loss term squares"),
    "one gradient": ({"nan_gradient": [1]}, "the gradient of hidden/bias"),
}

# Unit roundoff of float32.
U = 2.0**-24


@functools.cache
def built(**names: str) -> Parts:
    """Return a program; each argument is the TOML of a table, so that it can be cached."""
    return build(recipe(**{name: json.loads(text) for name, text in names.items()}))


def parts(**tables: Any) -> Parts:
    return built(**{name: json.dumps(table) for name, table in tables.items()})


def walk(program: Parts, steps: int) -> list[tuple[Any, Any]]:
    """Return the state, on the host, and the metrics after each step; the initial state first."""
    state = program.state()
    seen: list[tuple[Any, Any]] = [(host(state), {})]
    for step in range(steps):
        state, metrics = program.step(state, program.batch(step))
        seen.append((host(state), host(metrics)))
    return seen


def applied(state: TrainState) -> tuple[Any, Any, Any]:
    return state.params, state.buffers, state.opt_state


@pytest.mark.parametrize("limit", [0.5, 1e6])
def test_the_gradient_is_clipped_by_its_global_norm_as_optax_does(limit: float) -> None:
    program = parts(**PLAIN | {"step": {"clip_norm": limit}})
    (before, _), (after, metrics) = walk(program, 1)
    key = jax.random.fold_in(program.state().key, 0)
    grads = program.gradient(before.params, before.buffers, program.batch(0), key).grads
    norm = sum(np.sum(np.square(leaf, dtype=np.float64)) for leaf in jax.tree.leaves(host(grads)))
    norm = float(np.sqrt(norm))
    assert 0.5 < norm < 1e6  # the one limit clips, the other does not
    # A sum of 280 squares, added in any order, and a root: half of 280 roundings at the worst.
    assert abs(float(metrics["grad_norm"]) - norm) <= 140 * U * norm
    clip = optax.clip_by_global_norm(limit)
    clipped, _ = clip.update(grads, clip.init(grads))
    for old, new, grad in zip(
        *map(jax.tree.leaves, (before.params, after.params, clipped)), strict=True
    ):
        expected = old - np.float32(0.1) * np.asarray(grad)
        # The norm's error above, and a few roundings of the gradient and of the parameter.
        bound = 150 * U * 0.1 * np.abs(grad) + 2 * U * np.abs(old)
        assert np.all(np.abs(new - expected) <= bound)


def test_without_a_limit_the_gradient_is_not_touched() -> None:
    (_, _), (free, _) = walk(parts(**PLAIN), 1)
    (_, _), (loose, _) = walk(parts(**PLAIN | {"step": {"clip_norm": 1e6}}), 1)
    assert_bitwise_equal(loose.params, free.params)


@pytest.mark.parametrize("spoiled", SPOILED)
def test_a_step_that_is_not_finite_changes_nothing_but_the_counters(spoiled: str) -> None:
    seen = walk(parts(data=SPOILED[spoiled][0]), 3)
    (_, _), (before, _), (after, metrics), (later, finite) = seen
    assert_bitwise_equal(applied(after), applied(before))
    assert_bitwise_equal(after.key, before.key)
    assert after.step == 2
    assert metrics["skipped_steps"] == 1
    # And the next step is made as if nothing had been.
    assert finite["skipped_steps"] == 1
    assert np.isfinite(finite["loss"])
    assert not np.array_equal(later.params["out"]["kernel"], after.params["out"]["kernel"])


@pytest.mark.parametrize("spoiled", SPOILED)
def test_a_skipped_step_does_not_advance_the_schedule(spoiled: str) -> None:
    rates = [float(metrics["learning_rate"]) for _, metrics in walk(parts(**COSINE), 5)[1:]]
    assert len(set(rates)) > 3
    skipping = walk(parts(data=SPOILED[spoiled][0], **COSINE), 6)[1:]
    found = [float(metrics["learning_rate"]) for _, metrics in skipping]
    assert found == [rates[0], rates[1], *rates[1:]]


@pytest.mark.parametrize("spoiled", [[], [1, 3]])
def test_the_learning_rate_logged_is_the_one_applied(spoiled: list[int]) -> None:
    program = parts(data={"nan_loss": spoiled}, **COSINE, **PLAIN)
    seen = walk(program, 6)
    rates = set()
    for step, ((before, _), (after, metrics)) in enumerate(itertools.pairwise(seen)):
        if step in spoiled:
            continue
        key = jax.random.fold_in(program.state().key, step)
        grads = program.gradient(before.params, before.buffers, program.batch(step), key).grads
        old, new, grad = (
            np.asarray(tree["out"]["kernel"], np.float64)
            for tree in (before.params, after.params, grads)
        )
        # Without momentum new = old - rate * grad. The subtraction rounds by U of a parameter,
        # the gradient is that of another program, off by some roundings: by least squares over
        # 128 elements the rate is known far better than to 1e-5; the schedule moves by 1e-2.
        rate = np.sum((old - new) * grad) / np.sum(grad**2)
        assert rate == pytest.approx(float(metrics["learning_rate"]), rel=1e-5)
        rates.add(float(metrics["learning_rate"]))
    assert len(rates) >= 3


# ------------------------------------------------------------------ stopping a run


def observed(config: dict[str, Any]) -> Any:
    """Return a checked config with a recorder, and the recorder."""
    config["plugins"] = {**config["plugins"], "recorder": {"use": "models:Recorder"}}
    checked = load_config(config)
    return checked, checked.chosen["plugins.recorder"].plugin


@pytest.mark.parametrize("spoiled", SPOILED)
def test_a_run_stops_after_max_skipped_in_a_row_and_names_the_culprit(
    recipe: Any, spoiled: str
) -> None:
    kind, name = next(iter(SPOILED[spoiled][0])), SPOILED[spoiled][1]
    config = recipe(run={"steps": 9}, data={kind: [2, 3, 4]}, step={"max_skipped": 3})
    with pytest.raises(RunError, match=rf"stopped at step 5: 3 steps in a row .*: {name}\."):
        fit(config)


@pytest.mark.parametrize("spoiled", [[0, 1, 3, 4], [1, 3, 5, 7]])
def test_a_finite_step_in_between_forgives(recipe: Any, spoiled: list[int]) -> None:
    result = fit(recipe(run={"steps": 9}, data={"nan_loss": spoiled}, step={"max_skipped": 3}))
    assert result.step == 9
    assert result.metrics["skipped_steps"] == 4


def test_not_a_number_from_the_first_step_stops_the_run(recipe: Any) -> None:
    config = recipe(run={"steps": 9}, data={"nan_loss": list(range(9))}, step={"max_skipped": 2})
    with pytest.raises(RunError, match="stopped at step 2: 2 steps in a row"):
        fit(config)


def test_without_skipping_the_first_stops_the_run_and_is_not_applied(recipe: Any) -> None:
    checked, recorder = observed(
        recipe(run={"steps": 9}, data={"nan_gradient": [2]}, step={"skip_nonfinite": False})
    )
    with pytest.raises(RunError, match=r"stopped at step 3: 1 step in a row .*hidden/bias"):
        train(checked)
    assert [call["step"] for call in recorder.given("report")] == [1, 2]
    assert not recorder.given("save")


def test_what_the_host_learns_late_is_neither_applied_nor_saved(recipe: Any) -> None:
    # Steps 3 and 4 are not finite, those after them are; the host looks at step 8 only.
    tables = {"data": {"nan_loss": [2, 3]}, "step": {"max_skipped": 2}}
    checked, recorder = observed(recipe(run={"steps": 8, "log_every": 8}, **tables))
    with pytest.raises(RunError, match=r"2 steps in a row .*the loss term squares") as caught:
        train(checked)
    assert "step 8" in str(caught.value)
    assert not recorder.given("save")
    # The same by hand: after the second bad step nothing moves any more.
    seen = walk(parts(**tables), 8)
    assert_bitwise_equal(applied(seen[8][0]), applied(seen[2][0]))


def test_a_save_between_two_reports_is_refused_too(recipe: Any) -> None:
    checked, recorder = observed(
        recipe(
            run={"steps": 8, "log_every": 8},
            data={"nan_loss": [2, 3]},
            step={"max_skipped": 2},
            checkpoint={"use": "orbax", "every": 2},
        )
    )
    with pytest.raises(RunError, match=r"stopped at step 4: 2 steps in a row .*squares"):
        train(checked)
    assert [call["step"] for call in recorder.given("save")] == [2]
    saved = Path(checked.directory, "checkpoints")
    assert [folder.name for folder in saved.iterdir()] == ["2"]


# ------------------------------------------------------------------ what is compiled


@pytest.mark.parametrize(
    "tables",
    [
        pytest.param({}, id="float32"),
        pytest.param(
            {"model": {"dtype": "bfloat16"}, "accumulate": {"microbatches": 2}},
            id="bfloat16 in microbatches",
        ),
        pytest.param(
            {
                "model": {"dtype": "bfloat16"},
                "accumulate": {"microbatches": 2},
                "optimizer": {
                    "use": "optax",
                    "transform": "optax:adafactor",
                    "arguments": {"min_dim_size_to_factor": 8},
                },
            },
            id="bfloat16 with adafactor",
        ),
    ],
)
def test_a_step_gives_back_the_kind_of_state_that_it_takes(tables: Any) -> None:
    program = parts(**tables)
    first = program.state()
    kinds = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding), first)
    structure = jax.tree.structure(first)
    state, _ = program.step(first, program.batch(0))
    state, metrics = program.step(state, program.batch(1))
    assert jax.tree.structure(state) == structure
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding), state) == kinds
    assert np.isfinite(metrics["loss"])


def test_the_state_is_donated() -> None:
    program = parts()
    before = program.state()
    after, _ = program.step(before, program.batch(0))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(applied(before)))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(after))


def test_a_run_compiles_its_step_once_and_nothing_between_steps(
    recipe: Any, caplog: pytest.LogCaptureFixture
) -> None:
    checked, recorder = observed(recipe(run={"steps": 6}))
    jax.config.update("jax_log_compiles", True)
    try:
        with caplog.at_level("WARNING"):
            train(checked)
    finally:
        jax.config.update("jax_log_compiles", False)
    compiled = [
        message.split("jit(")[1].split(")")[0]
        for message in caplog.messages
        if message.startswith("Finished XLA compilation of jit(")
    ]
    assert compiled.count("apply") == 1, "the step"
    assert len(recorder.given("report")) == 6
    assert len(compiled) == len(set(compiled)), "nothing is compiled twice"


def test_metrics_are_scalars_with_the_names_of_the_design() -> None:
    program = parts(model={"terms": ["squares", "sizes"]})
    _, metrics = program.step(program.state(), program.batch(0))
    assert all(value.shape == () for value in metrics.values())
    shown = {name for name in metrics if not name.startswith("_")}
    assert shown == {
        "loss",
        "loss/squares",
        "loss/sizes",
        "grad_norm",
        "learning_rate",
        "skipped_steps",
        "loss_spikes",
    }


def test_the_randomness_of_a_step_is_a_function_of_seed_and_step() -> None:
    program = parts(model={"dropout": 0.5}, **PLAIN)
    same = build(recipe(model={"dropout": 0.5}, **PLAIN))
    other = build(recipe(model={"dropout": 0.5}, run={"seed": 1}, **PLAIN))
    batch = program.batch(0)

    def loss(parts: Parts, step: int) -> float:
        state = program.state()
        key = parts.state().key
        changed = TrainState(
            jnp.int32(step), state.params, state.buffers, state.opt_state, key, state.extra
        )
        return float(parts.step(changed, batch)[1]["loss"])

    assert loss(program, 0) == loss(same, 0)
    assert len({loss(program, 0), loss(program, 1), loss(other, 0), loss(other, 1)}) == 4
