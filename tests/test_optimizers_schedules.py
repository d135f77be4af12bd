"""The optimizers are those of optax, and the schedules rise and fall as their names say."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from programs import assert_bitwise_equal, build, recipe

from trainer_core import UserError
from trainer_core.assemble import open_run
from trainer_core.config import load_config

pytestmark = [pytest.mark.usefixtures("quick_compiles"), pytest.mark.aside]

RATE = 0.01


def optimizer_of(**table: Any) -> tuple[Any, Any]:
    """Return the optimizer that a table builds for the perceptron, and its parameters."""
    parts = build(
        recipe(optimizer=table, schedule={"use": "constant", "learning_rate": RATE, "warmup": 0})
    )
    params = parts.program.model.init(jax.random.key(0))[0]
    return parts.program.optimizer, params


def updates(optimizer: Any, params: Any) -> Any:
    """Return the updates of three steps, with gradients of ever other sizes."""
    state, found = optimizer.init(params), []
    for step in range(3):
        grads = jax.tree.map(lambda leaf, by=step: jnp.cos(leaf * 7 + by) * 0.1**by, params)
        new, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, new)
        found.append(new)
    return found


class Odd:
    """What `optax` takes for a transformation, and JAX for none."""

    @staticmethod
    def init(leak: int) -> optax.GradientTransformation:
        return optax.GradientTransformation(lambda params: 1 / leak, lambda *_: None)


def refused_update(learning_rate: Any, why: str = "") -> optax.GradientTransformation:
    def update(grads: Any, state: Any, params: Any = None) -> Any:
        raise UserError(f"no update: {why}")

    return optax.GradientTransformation(lambda params: (), update)


@pytest.mark.parametrize(
    ("transform", "arguments", "said"),
    [
        (
            "optax:adam",
            {"b1": "x"},
            '[optimizer] use = "optax", transform = "optax:adam", arguments = {b1 = "x"}: its '
            "`update` raised TypeError: ",
        ),
        ("test_optimizers_schedules:Odd.init", {"leak": 0}, "its `init` raised ZeroDivisionError"),
        ("test_optimizers_schedules:refused_update", {"why": "so"}, "no update: so"),
    ],
)
def test_what_an_optimizer_raises_while_it_is_traced_names_its_settings(
    transform: str, arguments: Any, said: str
) -> None:
    table = {"use": "optax", "transform": transform, "arguments": arguments}
    with pytest.raises(UserError) as caught:
        build(recipe(optimizer=table)).program.compile_step()
    assert str(caught.value).startswith(said) or f"}}: {said}" in str(caught.value)
    if "raised" in said:
        assert caught.value.keys == ("optimizer.use", "optimizer.transform", "optimizer.arguments")


def test_adamw_is_optax_adamw_and_decays_matrices_alone() -> None:
    optimizer, params = optimizer_of(
        use="adamw", beta1=0.8, beta2=0.9, epsilon=1e-6, weight_decay=0.3
    )
    mask = {"hidden": {"kernel": True, "bias": False}, "gain": False, "out": {"kernel": True}}
    expected = optax.adamw(RATE, b1=0.8, b2=0.9, eps=1e-6, weight_decay=0.3, mask=mask)
    assert_bitwise_equal(updates(optimizer, params), updates(expected, params))


@pytest.mark.parametrize(
    ("kind", "decays"),
    [
        *[(kind, True) for kind in ("matrix", "embedding", "unembedding", "router", "conv")],
        *[(kind, False) for kind in ("norm", "bias", "position", "scalar", "other")],
    ],
)
def test_adamw_decays_by_kind(kind: Any, decays: bool) -> None:
    from trainer_core import Axis, Model, ParamInfo
    from trainer_core.defaults.optimizers import AdamW

    info = ParamInfo("p", (3,), jnp.dtype("float32"), (Axis(None),), kind)
    model = Model(init=lambda key: ({}, {}), terms=lambda *_: ({}, {}), params={"p": info})
    optimizer = AdamW(weight_decay=0.5).build_optimizer(model=model, learning_rate=lambda _: 1.0)
    params = {"p": jnp.ones(3)}
    zero, _ = optimizer.update({"p": jnp.zeros(3)}, optimizer.init(params), params)
    np.testing.assert_array_equal(zero["p"], -0.5 if decays else 0.0)


@pytest.mark.parametrize(
    ("settings", "arguments"),
    [
        ({"momentum": 0.0}, {"momentum": None}),
        ({}, {"momentum": 0.9}),
        ({"momentum": 0.8, "nesterov": True}, {"momentum": 0.8, "nesterov": True}),
    ],
)
def test_sgd_is_optax_sgd(settings: Any, arguments: Any) -> None:
    optimizer, params = optimizer_of(use="sgd", **settings)
    expected = optax.sgd(RATE, **arguments)
    assert_bitwise_equal(updates(optimizer, params), updates(expected, params))


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("optax:lion", {"b1": 0.8}, lambda: optax.lion(RATE, b1=0.8)),
        ("optax:adafactor", {"clipping_threshold": 2.0}, None),
        ("optax.contrib:ademamix", {"alpha": 3.0}, None),
        # One that knows no learning rate is scaled by it.
        (
            "optax:scale_by_adam",
            {"b1": 0.8},
            lambda: optax.chain(optax.scale_by_adam(b1=0.8), optax.scale_by_learning_rate(RATE)),
        ),
        ("optax:sign_sgd", {}, lambda: optax.sign_sgd(RATE)),
    ],
)
def test_any_transformation_of_optax_is_taken_by_its_path(
    name: str, arguments: Any, expected: Any
) -> None:
    optimizer, params = optimizer_of(use="optax", transform=name, arguments=arguments)
    if expected is None:
        module, _, attribute = name.partition(":")
        where = optax.contrib if module == "optax.contrib" else optax
        made = getattr(where, attribute)(learning_rate=RATE, **arguments)
    else:
        made = expected()
    assert_bitwise_equal(updates(optimizer, params), updates(made, params))


def test_a_transformation_that_needs_the_loss_is_given_it() -> None:
    parts = build(
        recipe(
            optimizer={
                "use": "optax",
                "transform": "optax.contrib:reduce_on_plateau",
                "arguments": {"patience": 1, "factor": 0.5},
            },
            data={"batch_size": 8},
        )
    )
    state = parts.state()
    for _ in range(2):
        state, metrics = parts.step(state, parts.batch(0))
    best = [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state)
        if "best_value" in jax.tree_util.keystr(path)
    ]
    assert best
    assert float(best[0]) == pytest.approx(float(metrics["loss"]), rel=1e-6)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"transform": "optax:adamm"}, ["[optimizer] transform", "no 'adamm'", "did you mean"]),
        ({"transform": "optix:adam"}, ["[optimizer] transform", "no module 'optix'"]),
        ({"transform": "adam"}, ["[optimizer] transform", '"package.module:Object"']),
        (
            {"transform": "optax:lion", "arguments": {"beta1": 0.9}},
            ["optax:lion", "{'beta1': 0.9}", "unexpected keyword argument 'beta1'"],
        ),
        ({"transform": "optax:apply_updates"}, ["optax:apply_updates", "missing"]),
        (
            {"transform": "optax:constant_schedule", "arguments": {"value": 1.0}},
            ["returned a function", "optax.GradientTransformation"],
        ),
    ],
)
def test_a_transformation_that_is_none_is_refused(table: Any, said: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        build(recipe(optimizer={"use": "optax", **table}))
    assert not [part for part in said if part not in str(caught.value)], str(caught.value)


# ------------------------------------------------------------------ schedules

STEPS, PEAK = 100, 0.4


def rates(**table: Any) -> list[float]:
    """Return the learning rate of every step of a run, and of one more."""
    config = recipe(run={"steps": STEPS}, schedule={"learning_rate": PEAK, "warmup": 20, **table})
    run, hooks = open_run(load_config(config))
    schedule = hooks.build_schedule(run=run)
    return [float(schedule(step)) for step in range(STEPS + 1)]


SCHEDULES = ["constant", "linear", "cosine", "wsd"]

# Each rate is a handful of float32 operations.
EXACT = 1e-6


@pytest.mark.parametrize("use", SCHEDULES)
def test_every_schedule_rises_in_a_line_to_its_peak(use: str) -> None:
    found = rates(use=use)
    # The first step already has its share, and the last of the warm-up has all of it.
    assert found[:20] == pytest.approx([PEAK * (step + 1) / 20 for step in range(20)], rel=EXACT)
    assert found[20] == pytest.approx(PEAK, rel=EXACT)
    assert max(found) <= PEAK * (1 + EXACT)


@pytest.mark.parametrize("use", SCHEDULES)
def test_a_schedule_without_warmup_begins_at_its_peak(use: str) -> None:
    assert rates(use=use, warmup=0)[0] == pytest.approx(PEAK, rel=EXACT)


@pytest.mark.parametrize("use", SCHEDULES)
def test_the_warmup_is_a_tenth_of_the_run_where_it_is_not_given(use: str) -> None:
    table = {"use": use, "learning_rate": PEAK}
    config = recipe(run={"steps": STEPS}) | {"schedule": table}
    run, hooks = open_run(load_config(config))
    schedule = hooks.build_schedule(run=run)
    assert float(schedule(8)) == pytest.approx(0.9 * PEAK, rel=EXACT)
    assert float(schedule(9)) == pytest.approx(PEAK, rel=EXACT)


def test_constant_stays_at_its_peak() -> None:
    assert rates(use="constant")[20:] == pytest.approx([PEAK] * 81, rel=EXACT)


def test_linear_falls_along_a_line_to_its_final_share() -> None:
    found = rates(use="linear", final=0.25)
    assert found[60] == pytest.approx(PEAK * (1 + 0.25) / 2, rel=EXACT)  # half way of 20 to 100
    assert found[100] == pytest.approx(PEAK * 0.25, rel=EXACT)


def test_cosine_falls_along_half_a_cosine_to_its_final_share() -> None:
    found = rates(use="cosine", final=0.25)
    for step in (20, 40, 60, 80, 100):
        share = 0.5 * (1 + math.cos(math.pi * (step - 20) / 80))
        assert found[step] == pytest.approx(PEAK * (0.25 + 0.75 * share), rel=EXACT)


def test_wsd_stays_and_falls_over_the_last_part() -> None:
    found = rates(use="wsd", final=0.25, decay=0.4)
    assert found[20:61] == pytest.approx([PEAK] * 41, rel=EXACT)
    assert found[80] == pytest.approx(PEAK * (1 + 0.25) / 2, rel=EXACT)  # half way of 60 to 100
    assert found[100] == pytest.approx(PEAK * 0.25, rel=EXACT)


def test_wsd_whose_fall_is_longer_than_what_the_warmup_leaves_falls_at_once() -> None:
    found = rates(use="wsd", final=0.0, decay=1.0)
    assert found[60] == pytest.approx(PEAK / 2, rel=EXACT)
    assert found[100] == pytest.approx(0.0, abs=EXACT)


@pytest.mark.parametrize("use", SCHEDULES)
@pytest.mark.parametrize("warmup", [STEPS, STEPS + 50])
def test_a_warmup_that_leaves_nothing_of_the_run_is_an_error(use: str, warmup: int) -> None:
    with pytest.raises(
        UserError,
        match=rf"\[schedule\] warmup = {warmup} .*leaves nothing of \[run\] steps = 100; try 10",
    ):
        rates(use=use, warmup=warmup)


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (2, 1), (1, None)])
@pytest.mark.parametrize("use", SCHEDULES)
def test_the_shortest_runs_have_a_schedule(use: str, steps: int, warmup: int | None) -> None:
    table = {"use": use, "learning_rate": PEAK} | ({} if warmup is None else {"warmup": warmup})
    run, hooks = open_run(load_config(recipe(run={"steps": steps}) | {"schedule": table}))
    schedule = hooks.build_schedule(run=run)
    assert float(schedule(0)) == pytest.approx(PEAK, rel=EXACT)
    assert all(math.isfinite(schedule(step)) for step in range(steps + 1))
