"""Models that look right, and what ModelSuite says of each: its test, and its words."""

from __future__ import annotations

import itertools
from typing import Any

import attrs
import jax
import jax.numpy as jnp
import numpy as np

from trainer_core import Model, Term, hookimpl, plugin, setting
from trainer_core.templates.model import Example
from trainer_core.testing import ModelSuite

SAID = {
    "TestMean": ("test_a_term_is_a_sum_and_its_weight", "return Term(sum, weight) over examples"),
    "TestUnweighted": ("test_what_has_no_weight_does_not_count", "multiply each loss by"),
    "TestLearnedWeight": (
        "test_a_weight_does_not_depend_on_the_parameters",
        "must follow from the batch alone",
    ),
    "TestAlwaysDropping": (
        "test_evaluation_draws_nothing_and_changes_nothing",
        "no dropout then",
    ),
    "TestCut": ("test_its_gradient_is_that_of_its_loss", "no gradient reaches embed/embedding"),
    "TestHalfCut": ("test_its_gradient_is_that_of_its_loss", "or a part of it"),
    "TestScannedOtherwise": (
        "test_scanned_and_unrolled_layers_are_one_model",
        "unrolled, with the same arrays",
    ),
    "TestOfAnotherShape": ("test_its_arrays_are_those_of_its_infos", "the model describes its"),
    "TestMiscounting": ("test_sharded_it_has_the_same_gradient", "on 8 devices its gradient is"),
    "TestNotANumber": ("test_sharded_it_has_the_same_gradient", "on 8 devices its gradient is nan"),
    "TestBegunElsewhere": ("test_sharded_it_begins_the_same", "on a mesh these parameters begin"),
    "TestWrongDerivative": ("test_its_gradient_is_that_of_its_loss", "a derivative of its own"),
    "TestAveragedDerivative": (
        "test_its_gradient_is_that_of_its_loss",
        "in a direction drawn at random the loss rises with out/kernel",
    ),
    "TestDrawing": ("test_its_terms_follow_from_their_arguments", "with the same arguments differ"),
    "TestConstant": ("test_its_parameters_follow_from_the_key", "`init` must use it"),
    "TestNameless": ("test_its_infos_are_whole", "has the kind 'other'"),
    "TestMisplaced": ("test_its_infos_are_whole", "says that its path is somewhere"),
}


def evolved_terms(model: Model, change: Any) -> Model:
    def terms(params: Any, buffers: Any, batch: Any, key: Any, train: bool) -> Any:
        found, buffers = model.terms(params, buffers, batch, key, train)
        return {"cross_entropy": change(found["cross_entropy"], params, batch, key)}, buffers

    return attrs.evolve(model, terms=terms)


def mean(model: Model) -> Model:
    return evolved_terms(model, lambda term, *_: Term(term.sum / term.weight, 1.0))


def unweighted(model: Model) -> Model:
    def terms(params: Any, buffers: Any, batch: Any, key: Any, train: bool) -> Any:
        ones = {"weights": jnp.ones_like(batch["weights"])}
        return model.terms(params, buffers, batch | ones, key, train)

    return attrs.evolve(model, terms=terms)


def learned_weight(model: Model) -> Model:
    def weighed(term: Term, params: Any, *_: Any) -> Term:
        return Term(term.sum, term.weight * jnp.mean(params["embed"]["embedding"] ** 2))

    return evolved_terms(model, weighed)


def always_dropping(model: Model) -> Model:
    def dropped(term: Term, params: Any, batch: Any, key: Any) -> Term:
        return Term(term.sum * jax.random.uniform(key), term.weight)

    return evolved_terms(model, dropped)


def cut(model: Model) -> Model:
    def terms(params: Any, *rest: Any) -> Any:
        return model.terms(params | {"embed": jax.lax.stop_gradient(params["embed"])}, *rest)

    return attrs.evolve(model, terms=terms)


def half_cut(model: Model) -> Model:
    def terms(params: Any, *rest: Any) -> Any:
        table = params["embed"]["embedding"]
        every_second = jnp.arange(table.shape[1]) % 2 == 0
        table = jnp.where(every_second, jax.lax.stop_gradient(table), table)
        return model.terms(params | {"embed": {"embedding": table}}, *rest)

    return attrs.evolve(model, terms=terms)


def scanned_otherwise(model: Model) -> Model:
    return model


def of_another_shape(model: Model) -> Model:
    def init(key: Any) -> Any:
        params, buffers = model.init(key)
        return params | {"out": {"kernel": params["out"]["kernel"].T}}, buffers

    return attrs.evolve(model, init=init)


def miscounting(model: Model) -> Model:
    return evolved_terms(model, lambda term, *_: Term(1.01 * term.sum, term.weight))


def not_a_number(model: Model) -> Model:
    @jax.custom_jvp
    def spoiled(x: Any) -> Any:
        return x

    spoiled.defjvp(lambda primals, tangents: (primals[0], jnp.nan * tangents[0]))

    def terms(params: Any, *rest: Any) -> Any:
        return model.terms(params | {"out": jax.tree.map(spoiled, params["out"])}, *rest)

    return attrs.evolve(model, terms=terms)


def begun_elsewhere(model: Model) -> Model:
    return attrs.evolve(model, init=lambda key: model.init(jax.random.fold_in(key, 1)))


@jax.custom_jvp
def doubled(x: jax.Array) -> jax.Array:
    return x


doubled.defjvp(lambda primals, tangents: (primals[0], 2 * tangents[0]))


def wrong_derivative(model: Model) -> Model:
    return evolved_terms(model, lambda term, *_: Term(doubled(term.sum), term.weight))


@jax.custom_vjp
def averaged(x: jax.Array) -> jax.Array:
    return x


# At right angles to what is lost of it: along this gradient the loss rises as it says.
averaged.defvjp(
    lambda x: (x, None),
    lambda _, grad: (jnp.broadcast_to(grad.mean(0, keepdims=True), grad.shape),),
)


def averaged_derivative(model: Model) -> Model:
    def terms(params: Any, *rest: Any) -> Any:
        return model.terms(params | {"out": jax.tree.map(averaged, params["out"])}, *rest)

    return attrs.evolve(model, terms=terms)


def drawing(model: Model) -> Model:
    """Draws from a generator of its own, in training: two units in the last place, or none."""
    draws = itertools.cycle([np.float32(1), np.float32(1 + 2**-22)])

    def terms(params: Any, buffers: Any, batch: Any, key: Any, train: bool) -> Any:
        found, buffers = model.terms(params, buffers, batch, key, train)
        if not train:
            return found, buffers
        scale = jax.pure_callback(lambda: next(draws), jax.ShapeDtypeStruct((), jnp.float32))
        term = found["cross_entropy"]
        return {"cross_entropy": Term(scale * term.sum, term.weight)}, buffers

    return attrs.evolve(model, terms=terms)


def constant(model: Model) -> Model:
    return attrs.evolve(model, init=lambda key: model.init(jax.random.key(0)))


def nameless(model: Model) -> Model:
    return attrs.evolve(
        model, params=jax.tree.map(lambda info: attrs.evolve(info, kind="other"), model.params)
    )


def misplaced(model: Model) -> Model:
    def moved(info: Any) -> Any:
        return attrs.evolve(info, path="somewhere")

    return attrs.evolve(model, params=jax.tree.map(moved, model.params))


ON_A_MESH = ("miscounting", "not_a_number", "begun_elsewhere")
CHANGES = {
    change.__name__: change
    for change in (
        half_cut,
        scanned_otherwise,
        of_another_shape,
        miscounting,
        not_a_number,
        begun_elsewhere,
        mean,
        unweighted,
        learned_weight,
        always_dropping,
        cut,
        wrong_derivative,
        averaged_derivative,
        drawing,
        constant,
        nameless,
        misplaced,
    )
}


@plugin
class Net:
    wrong: str = setting("mean", "what is wrong with it")
    depth: int = setting(0, "scales the loss: as layers that are not the same unrolled would")

    @hookimpl
    def build_state(self, run: Any) -> Model:
        change = CHANGES[self.wrong]
        model = Example().build_state(run)
        if self.depth:
            model = evolved_terms(model, lambda term, *_: Term(2 * term.sum, term.weight))
        return model if self.wrong in ON_A_MESH and run.mesh.size == 1 else change(model)


class Suite(ModelSuite):
    use = "nets:Net"


class TestMean(Suite):
    settings = {"wrong": "mean"}


class TestUnweighted(Suite):
    settings = {"wrong": "unweighted"}


class TestLearnedWeight(Suite):
    settings = {"wrong": "learned_weight"}


class TestAlwaysDropping(Suite):
    settings = {"wrong": "always_dropping"}


class TestCut(Suite):
    settings = {"wrong": "cut"}


class TestHalfCut(Suite):
    settings = {"wrong": "half_cut"}


class TestScannedOtherwise(Suite):
    settings = {"wrong": "scanned_otherwise"}
    unrolled = {"depth": 1}


class TestOfAnotherShape(Suite):
    settings = {"wrong": "of_another_shape"}


class TestMiscounting(Suite):
    settings = {"wrong": "miscounting"}


class TestNotANumber(Suite):
    settings = {"wrong": "not_a_number"}


class TestBegunElsewhere(Suite):
    settings = {"wrong": "begun_elsewhere"}


class TestWrongDerivative(Suite):
    settings = {"wrong": "wrong_derivative"}


class TestAveragedDerivative(Suite):
    settings = {"wrong": "averaged_derivative"}


class TestDrawing(Suite):
    settings = {"wrong": "drawing"}


class TestConstant(Suite):
    settings = {"wrong": "constant"}


class TestNameless(Suite):
    settings = {"wrong": "nameless"}


class TestMisplaced(Suite):
    settings = {"wrong": "misplaced"}
