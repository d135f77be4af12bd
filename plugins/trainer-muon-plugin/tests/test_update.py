"""Whole updates: against the published algorithms, and against AdamW where it is AdamW's turn."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
import shapes
from trainer_muon import Description, describe, muon

pytestmark = pytest.mark.usefixtures("quick_compiles")

RATE = 0.02
STEPS = 6


def grads_of(params: Any, step: int) -> Any:
    leaves, structure = jax.tree.flatten(params)
    return structure.unflatten(
        [
            np.random.default_rng([step, index]).standard_normal(leaf.shape).astype(np.float32)
            for index, leaf in enumerate(leaves)
        ]
    )


def trained(optimizer: Any, params: Any, steps: int = STEPS, grads: Any = grads_of) -> Any:
    """Return the parameters after some steps, each a whole jitted step."""

    @jax.jit
    def step(params: Any, state: Any, grads: Any) -> Any:
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params = jax.tree.map(jnp.asarray, params)
    state = optimizer.init(params)
    for number in range(steps):
        params, state = step(params, state, grads(params, number))
    return jax.device_get(params)


def matrices(*sizes: tuple[int, int]) -> tuple[Any, Any]:
    params = {f"m{at}": shapes.random(size, at) for at, size in enumerate(sizes)}
    return params, describe(params, {"*": Description("a:in b:out")})


SETTINGS: dict[str, dict[str, Any]] = {
    "Keller Jordan's": {"scale": "keller_jordan", "weight_decay": 0.0},
    "Moonlight's": {"scale": "moonlight", "weight_decay": 0.1},
    "spectral": {"scale": "spectral", "weight_decay": 0.1},
    "no nesterov": {"nesterov": False, "momentum": 0.8},
    "cautious": {"cautious": True, "weight_decay": 0.5},
    "NorMuon": {"normuon": True, "normuon_beta": 0.9},
    "NorMuon without memory": {"normuon": True, "normuon_beta": 0.0},
    "Polar Express": {"coefficients": "polar_express"},
    "own coefficients": {"coefficients": [1.5, -0.5, 0.0], "steps": 12},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_trajectory_is_that_of_the_published_algorithm(name: str) -> None:
    settings = SETTINGS[name]
    params, infos = matrices((16, 40), (40, 16), (24, 24))
    found = trained(muon(RATE, infos, gram=False, **settings), params)

    given = settings.get("coefficients", "standard")
    steps, safety = (
        reference.PRESETS[given] if isinstance(given, str) else ([given] * settings["steps"], 1.0)
    )
    plain = {
        "momentum": settings.get("momentum", 0.95),
        "nesterov": settings.get("nesterov", True),
        "weight_decay": settings.get("weight_decay", 0.1),
        "cautious": settings.get("cautious", False),
        "scale": settings.get("scale", "moonlight"),
        "normuon_beta": settings.get("normuon_beta") if settings.get("normuon") else None,
    }
    for at, key in enumerate(params):
        expected = params[key]
        optimizer = reference.KellerJordan(RATE, **plain, steps=steps, safety=safety)
        for step in range(STEPS):
            expected = optimizer.step(expected, grads_of(params, step)[f"m{at}"])
        # Float32 against float64, in units of what one step moves. Parameters of up to 4 are
        # rounded to 1e-5 of it six times; the iteration's own rounding is less (1e-6).
        np.testing.assert_allclose(found[key], expected, atol=5e-5 * RATE, rtol=0)


def test_gram_goes_the_same_way() -> None:
    params, infos = matrices((16, 40), (40, 16))
    found = trained(muon(RATE, infos), params)
    expected = trained(muon(RATE, infos, gram=False), params)
    for key in params:
        np.testing.assert_allclose(found[key], expected[key], atol=5e-5 * RATE, rtol=0)


@pytest.mark.parametrize("nesterov", [True, False])
def test_with_bias_correction_it_is_that_of_optax(nesterov: bool) -> None:
    params, infos = matrices((16, 40), (24, 24))
    settings = {"bias_correction": True, "nesterov": nesterov, "weight_decay": 0.0}
    found = trained(muon(RATE, infos, gram=False, scale="keller_jordan", **settings), params)
    expected = trained(optax.contrib.muon(RATE, nesterov=nesterov), params)
    for key in params:
        # Two orders of the same float32 arithmetic, as above.
        np.testing.assert_allclose(found[key], expected[key], atol=5e-5 * RATE, rtol=0)


def test_without_it_only_the_first_step_is_that_of_optax() -> None:
    """Keller Jordan's momentum has no bias correction: only directions are equal at first."""
    params, infos = matrices((16, 40))
    own = muon(RATE, infos, gram=False, scale="keller_jordan", weight_decay=0.0)
    oracle = optax.contrib.muon(RATE)
    first = [trained(each, params, 1)["m0"] for each in (own, oracle)]
    np.testing.assert_allclose(first[0], first[1], atol=5e-5 * RATE, rtol=0)
    later = [trained(each, params, 3)["m0"] for each in (own, oracle)]
    assert np.abs(later[0] - later[1]).max() > 0.02 * RATE


def test_all_else_is_bitwise_adamw() -> None:
    """Not NAdam, as in optax.contrib.muon; and norms and biases do not decay."""
    params, infos = shapes.stacked()
    found = trained(muon(RATE, infos, adamw_beta2=0.9, adamw_weight_decay=0.3), params)
    adamw = optax.adamw(
        RATE,
        b1=0.9,
        b2=0.9,
        weight_decay=0.3,
        mask=jax.tree.map(lambda info: info.kind == "embedding", infos),
    )
    expected = trained(adamw, params)
    for name in ("embedding", "bias"):
        np.testing.assert_array_equal(found[name], expected[name])
    np.testing.assert_array_equal(found["layers"]["norm"], expected["layers"]["norm"])


@pytest.mark.parametrize("kind", ["unembedding", "router", "norm", "position", "conv"])
def test_a_matrix_of_another_kind_is_bitwise_adamw(kind: Any) -> None:
    params = {"p": shapes.random((3, 8, 12), 1)}
    infos = describe(params, {"p": Description("layers:stack embed:in x:out", kind)})
    found = trained(muon(RATE, infos), params, 3)
    decays = kind in ("unembedding", "router", "conv")
    expected = trained(optax.adamw(RATE, b2=0.95, weight_decay=0.1 * decays), params, 3)
    np.testing.assert_array_equal(found["p"], expected["p"])


def test_low_rank_adapters_are_matrices_and_bitwise_adamw_where_a_rule_says_so() -> None:
    params = {"lora_a": shapes.random((3, 12, 2), 1), "lora_b": shapes.random((3, 2, 12), 2)}
    infos = describe(
        params,
        {
            "lora_a": Description("layers:stack embed:in rank:out"),
            "lora_b": Description("layers:stack rank:in mlp:out"),
        },
    )
    adamw = trained(optax.adamw(RATE, b2=0.95, weight_decay=0.1), params, 3)
    found = trained(muon(RATE, infos, rules={"lora_*": "adamw"}), params, 3)
    assert all(np.array_equal(found[name], adamw[name]) for name in params)
    found = trained(muon(RATE, infos), params, 3)
    assert not any(np.array_equal(found[name], adamw[name]) for name in params)


def test_it_is_an_optimizer_of_nnx() -> None:
    """Which passes its state with Variables here, and plain arrays there."""
    nnx = pytest.importorskip("flax.nnx")
    model = nnx.Linear(4, 6, rngs=nnx.Rngs(0))
    state = nnx.state(model, nnx.Param)
    rules = {
        "kernel/value": Description("embed:in mlp:out"),
        "bias/value": Description("mlp:out", "bias"),
    }
    infos = describe(state, rules)
    before = np.asarray(model.kernel[...])
    params = {"bias": np.asarray(model.bias[...]), "kernel": before}
    optimizer = nnx.Optimizer(model, muon(RATE, infos), wrt=nnx.Param)
    optimizer.update(model, jax.tree.map(jnp.ones_like, state))

    plain = {key.removesuffix("/value"): each for key, each in rules.items()}
    ones = jax.tree.map(np.ones_like, params)
    expected = trained(muon(RATE, describe(params, plain)), params, 1, lambda *_: ones)
    np.testing.assert_allclose(model.kernel[...], expected["kernel"], atol=1e-6)
    assert np.abs(np.asarray(model.kernel[...]) - before).max() > 1e-4


def test_infos_of_another_tree_are_refused() -> None:
    params, infos = matrices((4, 6), (6, 4))
    with pytest.raises(ValueError, match="muon was told of 2 arrays, and is given 1"):
        muon(RATE, infos).init({"m0": params["m0"]})


def test_without_parameters_it_says_what_it_needs() -> None:
    params, infos = matrices((4, 6))
    optimizer = muon(RATE, infos)
    with pytest.raises(ValueError, match="muon decays weights"):
        optimizer.update(params, optimizer.init(params))


def test_adamw_has_a_learning_rate_and_a_mask_of_its_own() -> None:
    params, infos = shapes.stacked()
    found = trained(muon(RATE, infos, adamw_rate=0.5, adamw_decayed=["bias"]), params)
    mask = jax.tree.map(lambda info: info.kind == "bias", infos)
    expected = trained(optax.adamw(RATE / 2, b2=0.95, weight_decay=0.1, mask=mask), params)
    for name in ("embedding", "bias"):
        np.testing.assert_array_equal(found[name], expected[name])


def test_both_halves_follow_the_schedule() -> None:
    """Each step has its own rate, and AdamW's is that times its factor."""
    params, infos = shapes.stacked()
    rates = [0.04, 0.0, 0.01]
    found = trained(muon(lambda count: jnp.asarray(rates)[count], infos, adamw_rate=0.5), params, 3)
    halves = {"muon": 1.0, "adamw": 0.5}
    state = {half: muon(1.0, infos).init(params) for half in halves}
    expected = dict.fromkeys(halves, params)
    for half, factor in halves.items():
        for step, rate in enumerate(rates):
            fixed = muon(rate * factor, infos)
            updates, state[half] = jax.jit(fixed.update)(
                grads_of(params, step), state[half], expected[half]
            )
            expected[half] = optax.apply_updates(expected[half], updates)
    for name in ("query", "up"):
        np.testing.assert_allclose(
            found["layers"][name], expected["muon"]["layers"][name], atol=5e-5 * RATE, rtol=0
        )
    np.testing.assert_allclose(
        found["embedding"], expected["adamw"]["embedding"], atol=5e-5 * RATE, rtol=0
    )


@pytest.mark.parametrize("cautious", [False, True])
def test_without_a_gradient_weights_decay_exactly(cautious: bool) -> None:
    """Decoupled: p (1 - lr wd); an update of zero agrees with any sign."""
    params, infos = matrices((4, 6))
    zero = muon(RATE, infos, weight_decay=0.5, cautious=cautious)
    found = trained(zero, params, 1, lambda tree, step: jax.tree.map(np.zeros_like, tree))
    decay = np.float32(0.5) * params["m0"]
    np.testing.assert_array_equal(found["m0"], params["m0"] + np.float32(-RATE) * decay)


def test_a_learning_rate_of_zero_changes_nothing() -> None:
    params, infos = shapes.stacked()
    found = trained(muon(lambda count: 0.0 * count, infos), params)
    jax.tree.map(np.testing.assert_array_equal, found, params)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "extra",
    [
        {},
        pytest.param({"normuon": True}, marks=pytest.mark.long),
        pytest.param({"iteration_dtype": "bfloat16"}, marks=pytest.mark.long),
    ],
)
def test_dtypes_stay_and_a_step_compiles_once(dtype: str, extra: Any) -> None:
    params, infos = shapes.stacked()
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params)
    optimizer = muon(RATE, infos, **extra)
    compiled = []

    @jax.jit
    def step(params: Any, state: Any, grads: Any) -> Any:
        compiled.append(True)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    assert all(leaf.dtype in (jnp.float32, jnp.int32) for leaf in jax.tree.leaves(state))
    before = jax.tree.map(lambda leaf: leaf.dtype, (params, state))
    for number in range(3):
        grads = jax.tree.map(lambda leaf: leaf.astype(dtype), grads_of(params, number))
        params, state = step(params, state, grads)
    assert jax.tree.map(lambda leaf: leaf.dtype, (params, state)) == before
    assert len(compiled) == 1


def test_bfloat16_parameters_are_updated_as_float32_copies_of_them() -> None:
    """What Muon and AdamW keep and return is float32; only the parameter itself is rounded."""
    params, infos = shapes.stacked()
    rounded = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), params)
    optimizer = muon(RATE, infos)
    update = jax.jit(lambda tree: optimizer.update(tree, optimizer.init(tree), tree))
    found, expected = update(rounded), update(jax.tree.map(jnp.float32, rounded))
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(found[0]))


def test_a_bfloat16_iteration_is_that_of_float32_within_its_rounding() -> None:
    params, infos = matrices((16, 40), (24, 24))
    params = jax.tree.map(np.zeros_like, params)
    found, expected = (
        trained(muon(RATE, infos, iteration_dtype=dtype), params, 1)
        for dtype in ("bfloat16", "float32")
    )
    for key in params:
        difference = np.linalg.norm(found[key] - expected[key]) / np.linalg.norm(expected[key])
        assert 1e-3 < difference < 0.1  # else it was not in bfloat16 at all


def test_the_state_holds_no_hyperparameters() -> None:
    """What a config says at a resumed start holds: optax keeps the old coefficients instead."""
    params, infos = shapes.stacked()
    one, other = (
        muon(RATE, infos, **each).init(params)
        for each in ({}, {"coefficients": "polar_express", "momentum": 0.5, "weight_decay": 0.3})
    )
    assert jax.tree.structure(one) == jax.tree.structure(other)
    scalars = [leaf for leaf in jax.tree.leaves(one) if leaf.ndim == 0]
    assert all(leaf.dtype == jnp.int32 for leaf in scalars)  # counts of updates alone
