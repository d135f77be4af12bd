"""The gradient of a global batch does not depend on the microbatches that it is computed in."""

from __future__ import annotations

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import rows
from programs import Parts, build, host, recipe

from trainer_core import Axis, Gradient, Model, ParamInfo, Term, UserError
from trainer_core.assemble import open_run
from trainer_core.config import load_config
from trainer_core.defaults.accumulate import Microbatch
from trainer_core.loss import build_loss
from trainer_core.plan.hlo import computations
from trainer_core.testing.small import COEFFICIENTS

pytestmark = [pytest.mark.usefixtures("quick_compiles"), pytest.mark.aside]

TERMS = ["squares", "sizes", "penalty"]
BATCH = 16

# Unit roundoff of float32 is 6e-8. A gradient here is three products of matrices of at most 16
# terms each, a sum over 16 rows and some ten operations beside: at most 3 * 16 + 16 + 10 = 74
# roundings in a row, 4.4e-6 of the largest element. A mean of the microbatches' means is off by
# more than 1e-1.
FLOAT32 = 5e-6

# Rows whose weights are 0. Microbatch k of K holds the rows k, k + K, k + 2 K, …
ZEROED = {
    "none": slice(0, 0),
    "one of two microbatches": slice(1, None, 2),
    "one of four microbatches": slice(2, None, 4),
    "one for one term only": slice(3, None, 4),
}


@functools.cache
def perceptron(microbatches: int, depth: int = 0, **shard: Any) -> Parts:
    return build(
        recipe(
            model={"terms": TERMS, "depth": depth},
            accumulate={"microbatches": microbatches},
            shard=shard,
        )
    )


@functools.cache
def initial() -> Any:
    state = perceptron(1).state()
    return state.params, state.buffers


def gradient(microbatches: int, batch: Any) -> Gradient:
    found: Gradient = host(perceptron(microbatches).gradient(*initial(), batch))
    return found


def ragged(zeroed: str) -> dict[str, np.ndarray]:
    batch = rows(BATCH)
    batch["weights"][ZEROED[zeroed]] = 0
    if "one term" not in zeroed:
        batch["others"][ZEROED[zeroed]] = 0
    return batch


def distance(found: Any, expected: Any) -> float:
    """Return the largest difference of two trees, in units of the largest element."""
    pairs = list(zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True))
    off = max(float(np.max(np.abs(a.astype(np.float64) - b))) for a, b in pairs)
    return off / max(float(np.max(np.abs(b))) for _, b in pairs)


@pytest.mark.parametrize("zeroed", ZEROED)
@pytest.mark.parametrize("microbatches", [2, 4])
def test_microbatches_give_the_loss_and_gradient_of_the_whole_batch(
    microbatches: int, zeroed: str
) -> None:
    batch = ragged(zeroed)
    whole, parts = gradient(1, batch), gradient(microbatches, batch)
    assert distance(parts.loss, whole.loss) < FLOAT32
    assert distance(parts.grads, whole.grads) < FLOAT32
    for name in ("squares", "sizes"):  # sums of at most 16 rows each
        assert parts.terms[name].weight == whole.terms[name].weight
        assert distance(parts.terms[name].sum, whole.terms[name].sum) < FLOAT32


@pytest.mark.parametrize("microbatches", [1, 2, 4])
def test_loss_and_gradient_are_those_of_a_float64_oracle(microbatches: int) -> None:
    batch = ragged("one of four microbatches")
    loss, grads = oracle(initial()[0], batch)
    found = gradient(microbatches, batch)
    assert distance(found.loss, loss) < FLOAT32
    assert distance(found.grads, grads) < FLOAT32


@pytest.mark.parametrize("microbatches", [1, 2, 4])
def test_each_term_is_divided_by_its_own_weight_and_counts_by_its_coefficient(
    microbatches: int,
) -> None:
    def terms(params: Any, buffers: Any, batch: Any, key: Any, train: bool) -> Any:
        found = {
            "a": Term(jnp.sum(batch["a"] * batch["x"] * params["p"]), jnp.sum(batch["a"])),
            "b": Term(jnp.sum(batch["b"] * params["p"]), jnp.sum(batch["b"])),
            "unseen": Term(jnp.sum(params["p"]) * 1e6, 1.0),
        }
        return found, buffers

    batch = {
        "x": np.arange(8, dtype=np.float32),
        "a": np.array([1, 0, 0, 0, 0, 3, 0, 0], np.float32),  # the sum is 4
        "b": np.array([0, 1, 0, 0, 0, 0, 0, 1], np.float32),  # the sum is 2
    }
    found = accumulated(
        terms,
        {"p": np.float32(2)},
        batch,
        microbatches,
        coefficients={"b": 0.5, "unseen": 0.0},
    )
    # By hand, and exact in float32: a: (0 * 1 + 5 * 3) / 4 = 3.75; b: 0.5 * (1 + 1) / 2 = 0.5
    assert found.grads["p"] == 4.25
    assert found.loss == 8.5
    assert (found.terms["a"].sum, found.terms["a"].weight) == (30, 4)
    assert (found.terms["b"].sum, found.terms["b"].weight) == (4, 2)


@pytest.mark.parametrize("microbatches", [1, 2, 4])
def test_a_mean_with_weight_one_is_averaged_over_microbatches(microbatches: int) -> None:
    def terms(params: Any, buffers: Any, batch: Any, key: Any, train: bool) -> Any:
        return {"auxiliary": Term(jnp.mean(batch["x"] * params["p"]), 1.0)}, buffers

    batch = {"x": np.arange(8, dtype=np.float32)}
    found = accumulated(terms, {"p": np.float32(2)}, batch, microbatches)
    assert (found.loss, found.grads["p"]) == (7.0, 3.5)  # the mean of 0 to 7, exact


@pytest.mark.parametrize("microbatches", [1, 4])
def test_weights_that_are_all_zero_give_a_zero_gradient(microbatches: int) -> None:
    batch = ragged("none")
    batch["weights"][:] = 0
    batch["others"][:] = 0
    found = build(
        recipe(
            model={"terms": ["squares", "sizes"]},
            accumulate={"microbatches": microbatches},
        )
    ).gradient(*initial(), batch)
    assert found.loss == 0
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(host(found.grads)))


def test_each_microbatch_has_a_key_of_its_own() -> None:
    def terms(params: Any, buffers: Any, batch: Any, key: Any, train: bool) -> Any:
        mask = jax.random.bernoulli(key, shape=(64,))
        first = batch["first"][0]  # where this microbatch notes its mask
        noted = jax.lax.dynamic_update_index_in_dim(buffers["masks"], mask, first, 0)
        return {"a": Term(jnp.sum(mask * params["p"]), 1.0)}, {"masks": noted}

    found = accumulated(
        terms,
        {"p": np.zeros(64, np.float32)},
        {"first": np.arange(8, dtype=np.int32)},
        4,
        buffers={"masks": np.zeros((4, 64), bool)},
    )
    masks = found.buffers["masks"]
    assert len({mask.tobytes() for mask in masks}) == 4
    # The gradient is of these very masks: the weights are found with the same keys.
    np.testing.assert_array_equal(found.grads["p"], masks.mean(0, dtype=np.float32))


def test_buffers_pass_through_the_microbatches_in_order() -> None:
    def terms(params: Any, buffers: Any, batch: Any, key: Any, train: bool) -> Any:
        seen = 10 * buffers["seen"] + batch["x"][0]
        return {"a": Term(params["p"] * seen, 1.0)}, {"seen": seen}

    found = accumulated(
        terms,
        {"p": np.float32(1)},
        {"x": np.arange(1, 9, dtype=np.float32)},
        4,
        buffers={"seen": np.float32(0)},
    )
    assert found.buffers["seen"] == 1234  # the first rows of the microbatches are 1, 2, 3, 4
    assert found.grads["p"] == (1 + 12 + 123 + 1234) / 4


@pytest.mark.parametrize(("dtype", "total"), [("float32", 64.75), ("bfloat16", 64.0)])
def test_gradients_of_bfloat16_parameters_add_up_in_float32(dtype: str, total: float) -> None:
    def terms(params: Any, buffers: Any, batch: Any, key: Any, train: bool) -> Any:
        # A product in bfloat16, as the parameter is: each microbatch's gradient is bfloat16.
        product = batch["x"].astype(jnp.bfloat16) * params["p"]
        return {"a": Term(jnp.sum(product.astype(jnp.float32)), 1.0)}, buffers

    # Each microbatch's gradient, 64 and three times 0.25, has few bits. Their sum has nine:
    # float32 holds it, bfloat16 has eight and loses every small one. So `accumulate.dtype`
    # decides, and the bound (exact) tells the two apart.
    found = accumulated(
        terms,
        {"p": jnp.bfloat16(1)},
        {"x": np.array([256, 1, 1, 1], np.float32)},
        4,
        dtype=dtype,
    )
    assert found.grads["p"].dtype == dtype
    assert found.grads["p"] == total


def test_float64_is_refused_where_jax_would_make_it_float32() -> None:
    with pytest.raises(UserError, match=r"\[accumulate\] dtype = \"float64\".*JAX_ENABLE_X64=1"):
        build(recipe(accumulate={"microbatches": 2, "dtype": "float64"}))


@pytest.mark.parametrize("depth", [0, 3])
def test_knowing_the_weights_first_costs_no_forward_pass(depth: int) -> None:
    def products(microbatches: int) -> int:
        parts = perceptron(microbatches, depth)
        state, batch = parts.program.abstract_state, parts.program.abstract_batch
        lowered = jax.jit(parts.grad_fn).lower(
            state.params, state.buffers, batch, jax.random.key(0)
        )
        return len(re.findall(r"\bdot\(", lowered.compile().as_text()))

    # Forward 2 and backward 3, the input needs no gradient; a scanned layer adds 1 and 2, in
    # one loop body for all of them. A forward pass for the weights would add 2 or 3.
    assert products(1) == (5 if depth == 0 else 8)
    assert products(4) == products(1)


def test_memory_is_that_of_one_microbatch_and_a_float32_gradient() -> None:
    """The batch, cut into parts once, comes on top, and its weights, which are cut twice."""

    def lowered(rows: int, count: int) -> Any:
        parts = build(recipe(data={"batch_size": rows}, accumulate={"microbatches": count}))
        state, batch = parts.program.abstract_state, parts.program.abstract_batch
        given = (state.params, state.buffers, batch, jax.random.key(0))
        memory = jax.jit(parts.grad_fn).lower(*given).compile().memory_analysis()
        return memory.temp_size_in_bytes, (state.params, batch)

    whole, (params, batch) = lowered(8192, 1)
    part, parts = lowered(512, 1)[0], lowered(8192, 16)[0]
    gradient = sum(4 * leaf.size for leaf in jax.tree.leaves(params))
    cut = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(batch))
    weights = 2 * sum(batch[name].size * 4 for name in ("weights", "others"))
    slack = 16 * 1024  # counters, keys, a term for each part
    assert parts <= part + gradient + cut + weights + slack
    assert whole > 2 * parts


@pytest.mark.eight_devices
def test_reduced_once_a_mean_counts_once_too() -> None:
    """Beside a ragged sum; on each device it is that of its own rows, which for a mean of a linear
    function is the same. The numbers are such that float32 adds them exactly."""

    def terms(params: Any, buffers: Any, batch: Any, key: Any, train: bool) -> Any:
        each = params["p"] * batch["x"]
        mean = Term(jnp.mean(each), jnp.ones(()))
        return {"mean": mean, "sum": Term(jnp.sum(each * batch["w"]), jnp.sum(batch["w"]))}, buffers

    weights = np.repeat([0, 1, 3, 4], 8).astype(np.float32)
    batch = {"x": np.arange(32, dtype=np.float32), "w": weights}
    each, once = (
        accumulated(terms, {"p": jnp.float32(2)}, batch, 4, reduce=reduce)
        for reduce in ("each", "once")
    )
    assert each.grads["p"] == np.mean(batch["x"]) + np.average(batch["x"], weights=weights)
    assert (once.grads["p"], once.loss) == (each.grads["p"], each.loss)


@pytest.mark.eight_devices
@pytest.mark.parametrize("reduce", ["each", "once"])
def test_no_device_and_no_microbatch_draws_the_mask_of_another(reduce: str) -> None:
    def terms(params: Any, buffers: Any, batch: Any, key: Any, train: bool) -> Any:
        drawn = jax.random.uniform(key, batch["row"].shape)
        kept = jnp.sum(params["p"][batch["row"]] * drawn)
        return {"a": Term(kept, jnp.ones(()))}, buffers

    # The gradient of a parameter is what was drawn for its row: of 8 devices and 4 microbatches,
    # two rows of each.
    batch, params = {"row": np.arange(64, dtype=np.int32)}, {"p": jnp.zeros(64)}
    drawn = accumulated(terms, params, batch, 4, reduce=reduce).grads["p"]
    assert len(set(drawn.tolist())) == 64
    assert drawn.min() > 0
    again = accumulated(terms, params, batch, 4, reduce=reduce).grads["p"]
    assert np.array_equal(drawn, again)


def test_weights_may_depend_on_the_parameters() -> None:
    """Those of all parts are then known one after the other, as their sums are."""

    def terms(params: Any, buffers: Any, batch: Any, key: Any, train: bool) -> Any:
        weights = jax.nn.sigmoid(batch["x"] * params["p"])
        return {"loss": Term(jnp.sum(weights * batch["x"] * params["p"]), weights.sum())}, buffers

    given = terms, {"p": np.float32(0.5)}, {"x": np.linspace(-1, 2, BATCH, dtype=np.float32)}
    whole, parts = (accumulated(*given, microbatches) for microbatches in (1, 4))
    assert abs(parts.loss - whole.loss) <= FLOAT32 * abs(whole.loss)
    assert abs(parts.grads["p"] - whole.grads["p"]) <= FLOAT32 * abs(whole.grads["p"])


@pytest.mark.eight_devices
def test_devices_tell_each_other_the_weights_of_all_parts_once() -> None:
    parts = build(recipe(data={"batch_size": 32}, accumulate={"microbatches": 4}))
    state, batch = parts.program.abstract_state, parts.program.abstract_batch
    text = (
        jax.jit(lambda *given: parts.grad_fn(*given).loss)
        .lower(state.params, state.buffers, batch, jax.random.key(0))
        .compile()
        .as_text()
    )
    every = computations(text)
    (entry,) = [lines for name, lines in every.items() if name.startswith("ENTRY ")]
    assert [each.shape for each in entry if each.kind == "all-reduce"] == ["f32[4]{0}"], text


@pytest.mark.eight_devices
def test_the_split_moves_no_rows_between_devices() -> None:
    parts = build(recipe(data={"batch_size": 32}, accumulate={"microbatches": 4}))
    program = parts.program
    assert dict(program.run.mesh.shape) == {"data": 8, "fsdp": 1, "tensor": 1}
    state, batch = program.abstract_state, program.abstract_batch
    text = (
        jax.jit(parts.grad_fn)
        .lower(state.params, state.buffers, batch, jax.random.key(0))
        .compile()
        .as_text()
    )
    assert "all-reduce" in text  # of the gradients: the check below looks at the right text
    for collective in ("all-gather", "all-to-all", "collective-permute"):
        assert collective not in text
    # And each device computes on a row of its own, of the 8 of a microbatch.
    assert re.search(r"f32\[(1,)?16\]\S* dot\(", text)
    assert not re.search(r"f32\[(8|32),16\]\S* dot\(", text)


@functools.cache
def run_of(batch_size: int) -> Any:
    return open_run(load_config(recipe(data={"batch_size": batch_size})))[0]


def accumulated(
    terms: Any,
    params: dict[str, Any],
    batch: dict[str, np.ndarray],
    microbatches: int,
    buffers: dict[str, Any] | None = None,
    coefficients: dict[str, float] | None = None,
    dtype: str = "float32",
    reduce: str = "each",
) -> Gradient:
    """Return the gradient of a model of one line."""

    def info(array: Any) -> ParamInfo:
        array = jnp.asarray(array)
        return ParamInfo("p", array.shape, array.dtype, (Axis(None),) * array.ndim)

    model = Model(
        init=lambda key: (params, buffers or {}),
        terms=terms,
        params=jax.tree.map(info, params),
        coefficients=coefficients or {},
    )
    run = run_of(len(next(iter(batch.values()))))
    plugin = Microbatch(microbatches=microbatches, dtype=dtype, reduce=reduce)
    grad_fn = plugin.accumulate(run=run, model=model, loss=build_loss(model))
    found: Gradient = host(jax.jit(grad_fn)(params, buffers or {}, batch, jax.random.key(0)))
    return found


def oracle(params: Any, batch: dict[str, np.ndarray]) -> tuple[np.ndarray, Any]:
    """Return the loss of the perceptron and its gradient, in float64 and by hand."""
    wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    x, targets = batch["x"].astype(np.float64), batch["targets"].astype(np.float64)
    kernel, bias = wide["hidden"]["kernel"], wide["hidden"]["bias"]
    gain, out = wide["gain"], wide["out"]["kernel"]
    weight = batch["weights"].astype(np.float64)[:, None] / batch["weights"].sum()
    other = batch["others"].astype(np.float64)[:, None] / batch["others"].sum()
    by_squares, by_sizes, by_penalty = (COEFFICIENTS[name] for name in TERMS)

    bent = np.tanh(x @ kernel + bias)  # [batch, width]
    hidden = gain * bent
    y = hidden @ out  # [batch, outputs]
    loss = (
        by_squares * np.sum(weight * (y - targets) ** 2)
        + by_sizes * np.sum(other * y**2)
        + by_penalty * np.mean(hidden**2)
    )
    of_y = 2 * by_squares * weight * (y - targets) + 2 * by_sizes * other * y
    of_hidden = of_y @ out.T + 2 * by_penalty * hidden / hidden.size
    of_sum = of_hidden * gain * (1 - bent**2)
    grads = {
        "gain": np.sum(of_hidden * bent, axis=0),
        "hidden": {"bias": of_sum.sum(0), "kernel": x.T @ of_sum},
        "out": {"kernel": hidden.T @ of_y},
    }
    return loss, grads


def test_what_does_nothing_with_one_microbatch_is_said() -> None:
    def notices(**settings: Any) -> list[str]:
        return list(load_config(recipe(accumulate=settings)).notices)

    assert notices(reduce="once") == ["[accumulate] reduce does nothing with microbatches = 1"]
    assert notices(gradients="zero2") == [
        "[accumulate] gradients does nothing with microbatches = 1"
    ]
    assert notices(gradients="zero2", microbatches=2) == notices() == []
