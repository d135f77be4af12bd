"""Any nn.Module: its collections cross as plain dicts, its state lasts."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.core import freeze
from trainer_linen import as_model

from trainer_core.errors import UserError
from trainer_core.losses import cross_entropy
from trainer_core.types import Model, Term

KEY = jax.random.key(5)
BATCH = {
    "x": np.random.default_rng(0).standard_normal((8, 6)).astype(np.float32),
    "labels": (np.arange(8) % 3).astype(np.int32),
}


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, None]:
        hidden = nn.relu(nn.Dense(6)(x))
        self.sow("losses", "size", Term(jnp.sum(hidden**2), float(len(x))))
        self.sow("intermediates", "hidden", hidden)
        return x + nn.Dropout(0.5, deterministic=not train)(hidden), None


class Classifier(nn.Module):
    """Has one of everything: scanned layers under remat, buffers, random streams, sown terms."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = nn.BatchNorm(use_running_average=not train)(x)
        layers = nn.scan(
            nn.remat(Layer, static_argnums=(2,), prevent_cse=False),
            variable_axes={"params": 0, "losses": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=nn.broadcast,
            length=3,
        )
        x, _ = layers(name="layers")(x, train)
        seen = self.variable("counts", "seen", lambda: jnp.zeros((), jnp.int32))
        if not self.is_initializing():
            seen.value += len(x)
        return nn.Dense(3, name="out")(x)

    def terms(self, batch: Any, train: bool) -> dict[str, Term]:
        return {"loss": cross_entropy(self(batch["x"], train), batch["labels"])}

    def logits(self, batch: Any) -> jax.Array:
        return self(batch["x"], False)


@pytest.fixture(scope="module")
def model() -> Model:
    return as_model(Classifier(), BATCH, coefficients={"size": 0.01})


@pytest.fixture(scope="module")
def state(model: Model) -> Any:
    return jax.jit(model.init)(KEY)


@pytest.fixture(scope="module")
def terms(model: Model) -> Any:
    return jax.jit(model.terms, static_argnums=4)


def paths(tree: Any) -> set[str]:
    return {
        "/".join(key.key for key in path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)
    }


def test_params_and_buffers_are_plain_dicts_with_string_keys(model: Model, state: Any) -> None:
    params, buffers = state
    assert type(params) is type(buffers) is dict
    assert set(params) == {"BatchNorm_0", "layers", "out"}
    assert paths(buffers) == {"BatchNorm_0/mean", "BatchNorm_0/var", "seen"}
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))


def test_what_is_said_of_the_state_is_what_init_returns(model: Model, state: Any) -> None:
    said = jax.tree.map(lambda info: info.abstract, (model.params, model.buffers))
    assert said == jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype), state)
    infos = jax.tree_util.tree_leaves_with_path((model.params, model.buffers))
    assert all("/".join(key.key for key in path[1:]) == info.path for path, info in infos)


def test_the_first_values_are_those_of_the_modules_own_init(state: Any) -> None:
    batch = jax.tree.map(jnp.asarray, BATCH)
    made = Classifier().init({"params": KEY}, batch, train=False, method="terms")
    same = jax.tree.map(lambda a, b: np.allclose(a, b, atol=1e-6), state[0], made["params"])
    assert jax.tree.all(same)


def test_init_computes_no_forward_pass(model: Model) -> None:
    program = str(jax.make_jaxpr(model.init)(KEY))
    assert "random_bits" in program
    assert "dot_general" not in program


def test_buffers_go_on_from_where_the_last_step_left_them(state: Any, terms: Any) -> None:
    params, buffers = state
    for step in range(1, 4):
        _, after = terms(params, buffers, BATCH, jax.random.key(step), True)
        assert int(after["seen"]) == 8 * step
        assert not np.array_equal(after["BatchNorm_0"]["mean"], buffers["BatchNorm_0"]["mean"])
        assert jax.tree.map(lambda a: (a.shape, a.dtype), after) == jax.tree.map(
            lambda a: (a.shape, a.dtype), buffers
        )
        buffers = after


def test_buffers_come_back_unchanged_from_an_evaluation(state: Any, terms: Any) -> None:
    params, buffers = state
    _, after = terms(params, buffers, BATCH, KEY, False)
    assert jax.tree.all(jax.tree.map(np.array_equal, buffers, after))


def test_randomness_is_the_keys_alone(state: Any, terms: Any) -> None:
    params, buffers = state

    def loss(key: Any, train: bool = True) -> float:
        return float(terms(params, buffers, BATCH, key, train)[0]["loss"].sum)

    assert loss(KEY) == loss(KEY)
    assert len({loss(jax.random.fold_in(KEY, step)) for step in range(5)}) == 5
    assert loss(KEY, train=False) == loss(jax.random.key(9), train=False)


def test_logits_are_those_of_evaluation_in_float32(model: Model, state: Any) -> None:
    assert model.logits is not None
    logits = jax.jit(model.logits)(*state, BATCH)
    assert logits.shape == (8, 3)
    assert logits.dtype == jnp.float32


@pytest.mark.parametrize("train", [True, False])
def test_a_sown_term_adds_up_over_the_layers(state: Any, terms: Any, train: bool) -> None:
    found = terms(*state, BATCH, KEY, train)[0]
    assert set(found) == {"loss", "size"}
    assert float(found["size"].weight) == 3 * 8
    assert float(found["size"].sum) > 0


def test_a_sown_term_reaches_the_gradient_of_every_layer(model: Model, state: Any) -> None:
    params, buffers = state

    def size(params: Any) -> Any:
        return model.terms(params, buffers, BATCH, KEY, False)[0]["size"].sum

    kernels = jax.grad(size)(params)["layers"]["Dense_0"]["kernel"]
    assert all(np.any(each != 0) for each in kernels)


def test_a_model_trains_from_its_gradient(model: Model, state: Any) -> None:
    params, buffers = state

    @jax.jit
    def step(params: Any, buffers: Any, key: Any) -> Any:
        def loss(params: Any) -> Any:
            found, after = model.terms(params, buffers, BATCH, key, True)
            return found["loss"].sum / found["loss"].weight, after

        (value, after), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return jax.tree.map(lambda p, g: p - 0.2 * g, params, grads), after, value

    losses = []
    for index in range(60):
        params, buffers, value = step(params, buffers, jax.random.key(index))
        losses.append(float(value))
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:3])


# ---------------------------------------------------------------------------- small modules


class Linear(nn.Module):
    """The smallest module; tests change its terms, and what else it does."""

    kernel_init: Any = nn.initializers.lecun_normal()
    besides: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        if self.besides is not None:
            self.besides(self, x, train)
        return nn.Dense(3, kernel_init=self.kernel_init, name="out")(x)


def traced(model: Model, train: bool = True) -> Any:
    params, buffers = jax.tree.map(lambda info: info.abstract, (model.params, model.buffers))
    return jax.eval_shape(
        lambda params, buffers: model.terms(params, buffers, BATCH, KEY, train), params, buffers
    )


def loss_of(module: Any, batch: Any) -> dict[str, Term]:
    return {"loss": cross_entropy(module(batch["x"]), batch["labels"])}


@pytest.mark.parametrize("boxed", [nn.with_partitioning, nn.with_logical_partitioning])
def test_logical_axis_names_of_a_model_apply_nowhere_but_in_the_core(boxed: Any) -> None:
    """The names stay names, also under a mesh that does not know them."""
    init = boxed(nn.initializers.normal(), ("embed", "classes"))
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh):
        model = as_model(Linear(init), BATCH, loss_of)
        params, _ = jax.eval_shape(model.init, KEY)
        traced(model)
    assert [axis.name for axis in model.params["out"]["kernel"].axes] == ["embed", "classes"]
    assert params["out"]["kernel"].shape == (6, 3)


def test_terms_are_given_the_constraint_and_the_mode_if_they_ask() -> None:
    seen = []

    def terms(module: Any, batch: Any, *, constrain: Any, train: bool) -> Any:
        scores = constrain(module(batch["x"]), ("batch", None))
        seen[-1] = (*seen[-1], train)
        return {"loss": cross_entropy(scores, batch["labels"])}

    def constrain(x: jax.Array, names: Any) -> jax.Array:
        seen.append(names)
        return x

    traced(as_model(Linear(), BATCH, terms, constrain=constrain))
    assert seen == [("batch", None, False), ("batch", None, True)]


def test_what_a_module_freezes_is_accepted() -> None:
    model = as_model(Linear(), BATCH, lambda module, batch: freeze(loss_of(module, batch)))
    found, _ = traced(model)
    assert set(found) == {"loss"}


def test_a_stream_of_another_name_is_seeded_too() -> None:
    def noisy(module: Any, batch: Any) -> Any:
        noise = jax.random.normal(module.make_rng("noise"), batch["x"].shape)
        return {"loss": cross_entropy(module(batch["x"] + noise), batch["labels"])}

    model = as_model(Linear(), BATCH, noisy, rngs=["noise"])
    params, _ = model.init(KEY)
    losses = [
        float(model.terms(params, {}, BATCH, jax.random.key(step), True)[0]["loss"].sum)
        for step in (1, 1, 2)
    ]
    assert losses[0] == losses[1] != losses[2]
    with pytest.raises(UserError, match=r'PRNG for "noise".*rngs = \["dropout", ...\]'):
        traced(as_model(Linear(), BATCH, noisy))


def test_a_cache_lives_within_a_call() -> None:
    def cached(module: Any, x: jax.Array, train: bool) -> None:
        module.variable("cache", "last", jnp.zeros, x.shape).value = x

    model = as_model(Linear(besides=cached), BATCH, loss_of)
    assert model.buffers == {}
    assert traced(model)[1] == {}


def _counting(module: Any, x: jax.Array, train: bool) -> None:
    # An average of a parameter, two counts of one name, and a count that is alone.
    module.variable("averages", "kernel", jnp.zeros, (2,))
    module.param("kernel", nn.initializers.ones, (2,))
    for collection, name in (("rows", "seen"), ("tokens", "seen"), ("rows", "last")):
        count = module.variable(collection, name, jnp.zeros, ())
        if train:
            count.value += 1 + (collection == "tokens")


def test_a_name_in_two_collections_keeps_the_collection_of_a_buffer() -> None:
    model = as_model(Linear(besides=_counting), BATCH, loss_in_mode)
    assert paths(model.params) == {"kernel", "out/kernel", "out/bias"}
    assert paths(model.buffers) == {"averages/kernel", "rows/seen", "tokens/seen", "last"}
    _, after = model.terms(*model.init(KEY), BATCH, KEY, True)
    assert after["rows"]["seen"] == after["last"] == 1
    assert after["tokens"]["seen"] == 2


def _losses(module: Any, batch: Any) -> jax.Array:
    scores = jax.nn.log_softmax(module(batch["x"]))
    return -jnp.take_along_axis(scores, batch["labels"][:, None], axis=1)


def _late(module: Any, x: jax.Array, train: bool) -> None:
    if train:
        module.variable("counts", "late", jnp.zeros, ())


def _late_parameter(module: Any, x: jax.Array, train: bool) -> None:
    if train:
        module.param("late", nn.initializers.ones, (2,))


def _growing(module: Any, x: jax.Array, train: bool) -> None:
    grown = module.variable("counts", "rows", jnp.zeros, (2,))
    if train:
        grown.value = jnp.zeros(3)


def _sowing(value: Any, name: str = "size") -> Any:
    def terms(module: Any, batch: Any) -> Any:
        module.sow("losses", name, value)
        return loss_of(module, batch)

    return terms


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        (lambda m, b: _losses(m, b).mean(), r"Linear.terms returned a bare array.*Term\(sum"),
        (lambda m, b: {"loss": _losses(m, b).mean()}, r"'loss' is a bare array of shape \(\)"),
        (lambda m, b: {"loss": (_losses(m, b).sum(), 8)}, r"Linear.terms: the term 'loss' is a tu"),
        (lambda m, b: [m(b["x"])][:0] or None, r"Linear.terms returned a NoneType"),
        (_sowing(1.0), r"Linear sows size into losses: a float; sow Term\(sum, weight\)"),
        (_sowing(Term(1.0, 1.0), "loss"), r"'loss' is returned by terms and sown into losses"),
    ],
)
def test_terms_that_cannot_be_added_up_are_refused(terms: Any, message: str) -> None:
    model = as_model(Linear(), BATCH, terms)
    with pytest.raises(UserError, match=message):
        traced(model)


def loss_in_mode(module: Any, batch: Any, train: bool) -> dict[str, Term]:
    return {"loss": cross_entropy(module(batch["x"], train), batch["labels"])}


@pytest.mark.parametrize(
    ("besides", "message"),
    [
        (_late, r"Linear.terms created counts/late: create it whether `train` is true or not"),
        (_late_parameter, r'Linear: Could not find parameter named "late".*not there at first'),
        (_growing, r"Linear.terms changed the shape of rows from \(2,\) to \(3,\)"),
    ],
)
def test_state_that_does_not_fit_the_first_is_refused(besides: Any, message: str) -> None:
    model = as_model(Linear(besides=besides), BATCH, loss_in_mode)
    with pytest.raises(UserError, match=message):
        traced(model)


@pytest.mark.parametrize(
    ("besides", "message"),
    [
        (lambda m, *_: m.param("held", lambda key: jnp.arange(3)), r"held.*int32 and has no grad"),
        (lambda m, *_: m.param("held", lambda key: [jnp.ones(2)]), r"hold one array in each"),
        (lambda m, *_: m.variable("keys", "held", lambda: jax.random.key(0)), r"a random key"),
        (lambda m, x, _: m.variable("first", "held", lambda: x), r"depends on the values of a b"),
    ],
)
def test_a_module_whose_state_cannot_be_kept_is_refused(besides: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        as_model(Linear(besides=besides), BATCH, loss_of)


def test_what_is_no_module_is_refused() -> None:
    with pytest.raises(UserError, match=r"is a function, not a flax.linen.Module"):
        as_model(loss_of, BATCH, loss_of)  # type: ignore[arg-type]
