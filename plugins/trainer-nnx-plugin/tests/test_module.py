"""Any nnx.Module: its arrays cross as plain dicts, its state lasts."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from trainer_nnx import as_model

from trainer_core.errors import UserError
from trainer_core.losses import cross_entropy
from trainer_core.types import Model, Term

KEY = jax.random.key(5)


class Seen(nnx.Variable[Any]):
    """A kind of state of its own."""


class Layer(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.linear = nnx.Linear(6, 6, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.dropout(nnx.relu(self.linear(x)))


class Classifier(nnx.Module):
    """Has one of everything: lists, stacks, buffers, random streams, a plain array."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.items = nnx.List([Layer(rngs), Layer(rngs)])
        self.named = nnx.Dict(extra=Layer(rngs))
        self.norm = nnx.BatchNorm(6, rngs=rngs)
        self.out = nnx.Linear(6, 3, rngs=rngs)
        self.seen = Seen(jnp.zeros((), jnp.int32))
        self.offsets = jnp.arange(6.0)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.norm(x + self.offsets)
        for layer in (*self.items, self.named["extra"]):
            x = layer(x)
        return self.out(x)

    def terms(self, batch: Any) -> dict[str, Term]:
        self.seen[...] += len(batch["labels"])
        self.offsets = self.offsets * 0.5
        return {"loss": cross_entropy(self(batch["x"]), batch["labels"])}

    def logits(self, batch: Any) -> jax.Array:
        return self(batch["x"])


BATCH = {
    "x": np.random.default_rng(0).standard_normal((8, 6)).astype(np.float32),
    "labels": np.arange(8) % 3,
}


@pytest.fixture(scope="module")
def model() -> Model:
    return as_model(Classifier)


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
    assert type(params) is dict
    assert set(params["items"]) == {"0", "1"}
    assert paths(buffers) == {"norm/mean", "norm/var", "seen", "offsets"}
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))


def test_what_is_said_of_the_state_is_what_init_returns(model: Model, state: Any) -> None:
    said = jax.tree.map(lambda info: (info.shape, str(info.dtype)), (model.params, model.buffers))
    found = jax.tree.map(lambda array: (array.shape, str(array.dtype)), state)
    assert said == found


def test_no_random_stream_is_part_of_the_state(state: Any) -> None:
    assert not any("rngs" in path for tree in state for path in paths(tree))


def test_buffers_go_on_from_where_the_last_step_left_them(state: Any, terms: Any) -> None:
    params, buffers = state
    for step in range(1, 4):
        _, after = terms(params, buffers, BATCH, jax.random.key(step), True)
        assert int(after["seen"]) == 8 * step
        assert np.array_equal(after["offsets"], buffers["offsets"] * 0.5)
        assert not np.array_equal(after["norm"]["mean"], buffers["norm"]["mean"])
        assert jax.tree.map(lambda a: (a.shape, a.dtype), after) == jax.tree.map(
            lambda a: (a.shape, a.dtype), buffers
        )
        buffers = after


def test_buffers_come_back_unchanged_from_an_evaluation(state: Any, terms: Any) -> None:
    params, buffers = state
    _, after = terms(params, buffers, BATCH, KEY, False)
    assert jax.tree.all(jax.tree.map(np.array_equal, buffers, after))


def test_randomness_is_the_key_s_alone(state: Any, terms: Any) -> None:
    params, buffers = state

    def loss(key: Any, train: bool = True) -> float:
        return float(terms(params, buffers, BATCH, key, train)[0]["loss"].sum)

    assert loss(KEY) == loss(KEY)
    assert len({loss(jax.random.fold_in(KEY, step)) for step in range(5)}) == 5
    assert loss(KEY, train=False) == loss(jax.random.key(9), train=False)


def test_logits_are_those_of_evaluation_in_float32(model: Model, state: Any) -> None:
    assert model.logits is not None
    logits = model.logits(*state, BATCH)
    assert logits.shape == (8, 3)
    assert logits.dtype == jnp.float32


class Masks(nnx.Module):
    """Shows its dropout masks: a single layer's, and those of layers stacked by vmap."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.single = nnx.Dropout(0.5, rngs=rngs)

        @nnx.split_rngs(splits=3)
        @nnx.vmap
        def stack(rngs: nnx.Rngs) -> nnx.Dropout:
            return nnx.Dropout(0.5, rngs=rngs)

        self.stacked = stack(rngs)

    def terms(self, batch: Any) -> dict[str, Term]:
        ones = jnp.ones(64)
        each = nnx.vmap(lambda layer: layer(ones))(self.stacked)
        masks = {"first": self.single(ones), "second": self.single(ones)}
        masks |= {f"layer {index}": each[index] for index in range(3)}
        bits = 2.0 ** jnp.arange(20)
        return {name: Term(jnp.sum((mask[:20] > 0) * bits), 1.0) for name, mask in masks.items()}


def test_each_use_and_each_stacked_layer_drops_something_else() -> None:
    model = as_model(Masks)
    terms = jax.jit(lambda key: model.terms({}, {}, {}, key, True)[0])
    seen = [float(term.sum) for step in range(3) for term in terms(jax.random.key(step)).values()]
    assert len(set(seen)) == 3 * 5


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


def test_logical_axis_names_of_a_model_apply_nowhere_but_in_the_core() -> None:
    """The names stay names, also under a mesh that does not know them."""

    class Named(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            init = nnx.with_partitioning(nnx.initializers.normal(), ("embed", "classes"))
            self.out = nnx.Linear(6, 3, kernel_init=init, rngs=rngs)

        def terms(self, batch: Any) -> dict[str, Term]:
            return {"loss": cross_entropy(self.out(batch["x"]), batch["labels"])}

    model = as_model(Named)
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh):
        params, buffers = jax.jit(model.init).lower(KEY).out_info
        jax.jit(model.terms, static_argnums=4).lower(params, buffers, BATCH, KEY, True)
    assert [axis.name for axis in model.params["out"]["kernel"].axes] == ["embed", "classes"]


def test_a_model_is_given_the_constraint_if_it_asks() -> None:
    class Asking(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.out = nnx.Linear(6, 3, rngs=rngs)

        def terms(self, batch: Any, constrain: Any) -> dict[str, Term]:
            scores = constrain(self.out(batch["x"]), ("batch", None))
            return {"loss": cross_entropy(scores, batch["labels"])}

    asked = []

    def constrain(x: jax.Array, names: tuple[str | None, ...]) -> jax.Array:
        asked.append(names)
        return x

    model = as_model(Asking, constrain=constrain)
    jax.eval_shape(lambda params: model.terms(params, {}, BATCH, KEY, True), *_abstract(model))
    assert asked == [("batch", None)]


def _abstract(model: Model) -> tuple[Any]:
    return (jax.tree.map(lambda info: info.abstract, model.params),)


class Linear(nnx.Module):
    """The smallest module; tests change its terms."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.out = nnx.Linear(6, 3, rngs=rngs)


def losses(module: Any, batch: Any) -> jax.Array:
    scores = jax.nn.log_softmax(module.out(batch["x"]))
    return -jnp.take_along_axis(scores, batch["labels"][:, None], axis=1)


def created_late(module: Any, batch: Any) -> dict[str, Term]:
    module.late = Seen(jnp.zeros(()))
    return {"loss": Term(losses(module, batch).sum(), 8)}


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        (lambda m, b: losses(m, b).mean(), r"Linear.terms returned a bare array.*Term\(sum"),
        (lambda m, b: {"loss": losses(m, b).mean()}, r"'loss' is a bare array of shape \(\)"),
        (lambda m, b: {"loss": (losses(m, b).sum(), 8)}, r"Linear.terms: the term 'loss' is a tup"),
        (lambda m, b: None, r"Linear.terms returned a NoneType"),
        (created_late, r"Linear.terms created late: create it in __init__"),
    ],
)
def test_terms_that_cannot_be_added_up_are_refused(terms: Any, message: str) -> None:
    model = as_model(Linear, terms)
    with pytest.raises(UserError, match=message):
        jax.eval_shape(lambda params: model.terms(params, {}, BATCH, KEY, True), *_abstract(model))


def test_a_model_without_terms_is_told_what_to_write() -> None:
    with pytest.raises(UserError, match=r"Linear has no method terms\(self, batch\).*Term\(sum"):
        as_model(Linear)


def _holding(value: Any) -> Any:
    class Holding(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.held = value(rngs)

    return Holding


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_holding(lambda rngs: [nnx.Linear(2, 2, rngs=rngs)]), r"'held'.*Holding.*nnx.List"),
        (_holding(lambda rngs: {"a": nnx.Linear(2, 2, rngs=rngs)}), r"'held'.*nnx.Dict"),
        (_holding(lambda rngs: [rngs.params()]), r"held.*(nnx.data|nnx.List)"),
        (_holding(lambda rngs: Seen({"a": jnp.ones(2)})), r"held, a Seen, holds a dict"),
        (_holding(lambda rngs: nnx.Param(jnp.arange(3))), r"held, a Param, is int32.*no gradient"),
        (_holding(lambda rngs: nnx.Linear(2, 0 / 0, rngs=rngs)), r"raised ZeroDivisionError"),
        (lambda rngs: jnp.ones(3), r"not a flax.nnx.Module"),
    ],
)
def test_a_module_whose_state_would_be_lost_is_refused(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        as_model(make, lambda module, batch: {})
