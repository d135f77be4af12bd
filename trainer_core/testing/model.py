"""What every model must hold to: shapes first, whole infos, sums and weights, a true gradient."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import attrs
import jax
import jax.numpy as jnp
import numpy as np

from trainer_core.loss import build_loss
from trainer_core.testing.parts import different_leaves, first_difference, host, kinds
from trainer_core.testing.sharded import first_gradient
from trainer_core.testing.suite import Suite
from trainer_core.types import Model, ParamInfo


class ModelSuite(Suite):
    """The tests of a model: subclass it, and name the model.

    class TestBigram(ModelSuite):
        use = "bigram"

    It gets batches of random tokens below 64; a model of other data names its source:
    `tables = {"data": {"use": "my_data"}}`.

    Attributes:
        unrolled: the settings with which its layers are not scanned, where it has both:
            `{"scan": False}`.
        rounding: how far the order of float32 additions may lead a gradient apart, as a part of
            its largest number.
        curvature: how far a difference quotient may be from the gradient, as a part of it, since
            its step is not infinitely small. Quotients are taken along the gradient of each
            parameter, along what it says does not matter, and in three directions of random signs,
            so that an error a third as large as it, in whichever direction, seldom goes unseen.
        per_microbatch: terms that are means of a microbatch, with the weight 1.
    """

    slot = "model"
    tables: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "data": {"use": "trainer_core.testing.small:Tokens"}
    }
    mesh: ClassVar[Mapping[str, int]] = {"fsdp": 8}
    unrolled: ClassVar[Mapping[str, Any]] = {}
    rounding: ClassVar[float] = 1e-4
    curvature: ClassVar[float] = 0.03
    per_microbatch: ClassVar[tuple[str, ...]] = ()

    def test_its_infos_are_whole(self) -> None:
        problems = [
            problem
            for tree in (self._model.params, self._model.buffers)
            for path, info in jax.tree_util.tree_leaves_with_path(tree)
            for problem in _problems(jax.tree_util.keystr(path, simple=True, separator="/"), info)
        ]
        problems += [
            f"{info.path} has the kind 'other': say what it is, so that an optimizer can tell"
            for info in jax.tree.leaves(self._model.params)
            if len(info.shape) > 1 and info.kind == "other"
        ]
        if problems:
            self.fail("; ".join(problems))

    def test_its_arrays_are_those_of_its_infos(self) -> None:
        made = jax.jit(self._model.init)(jax.random.key(0))
        found, said = kinds(made), kinds((self._model.params, self._model.buffers))
        if found != said:
            self.fail(f"`init` does not make what its infos say: {first_difference(found, said)}")

    def test_its_parameters_follow_from_the_key(self) -> None:
        init = jax.jit(self._model.init)
        first, again, other = (init(jax.random.key(seed))[0] for seed in (0, 0, 1))
        if changed := different_leaves(again, first):
            self.fail(f"with the same key these begin otherwise: {', '.join(changed)}")
        if not different_leaves(other, first):
            self.fail("its parameters are the same for every key: `init` must use it")

    def test_its_terms_follow_from_their_arguments(self) -> None:
        first, again = (self._terms(train=True) for _ in range(2))
        if changed := different_leaves(again, first):
            self.fail(f"two calls with the same arguments differ in {', '.join(changed)}")

    def test_evaluation_draws_nothing_and_changes_nothing(self) -> None:
        (terms, buffers), (others, _) = (self._terms(train=False, seed=seed) for seed in (1, 2))
        if changed := different_leaves(others, terms):
            self.fail(
                f"with train=False the key still counts, in {', '.join(changed)}: no dropout then"
            )
        if changed := different_leaves(buffers, self._state.buffers):
            self.fail(f"with train=False these buffers change: {', '.join(changed)}")

    def test_a_term_is_a_sum_and_its_weight(self) -> None:
        size = len(next(iter(self._batch.values())))
        halves = [
            jax.tree.map(lambda leaf, part=part: leaf[part], self._batch)
            for part in (slice(size // 2), slice(size // 2, size))
        ]
        whole = self._terms()[0]
        first, second = (self._terms(batch=half)[0] for half in halves)
        for name in whole.keys() - set(self.per_microbatch):
            for part in ("weight", "sum"):
                total, parts = (
                    float(getattr(whole[name], part)),
                    [float(getattr(each[name], part)) for each in (first, second)],
                )
                if abs(sum(parts) - total) > 1e-5 * max(abs(total), *map(abs, parts)):
                    self.fail(
                        f"the {part} of its term {name!r} is {total:.6g} for a batch, and "
                        f"{parts[0]:.6g} and {parts[1]:.6g} for its halves: return "
                        f"Term(sum, weight) over examples, not a mean; one that is a mean of a "
                        f"microbatch is named in per_microbatch"
                    )

    def test_a_weight_does_not_depend_on_the_parameters(self) -> None:
        state = self._state
        other = jax.tree.map(lambda leaf: 1.1 * leaf + jnp.asarray(0.1, leaf.dtype), state.params)
        one, two = (self._terms(params=params)[0] for params in (state.params, other))
        if changed := [name for name in one if float(one[name].weight) != float(two[name].weight)]:
            self.fail(
                f"the weight of {', '.join(changed)} depends on the parameters; it must follow "
                f"from the batch alone, which is weighed before the first gradient is taken"
            )

    def test_what_has_no_weight_does_not_count(self) -> None:
        weights = self._batch.get("weights")
        if weights is None:
            return
        silent = self._batch | {"weights": weights.at[0].set(0)}
        others = {
            name: leaf.at[0].set(leaf[1]) if name != "weights" else leaf
            for name, leaf in silent.items()
        }
        one, two = (self._terms(batch=batch)[0] for batch in (silent, others))
        for name in one.keys() - set(self.per_microbatch):
            if abs(float(one[name].sum) - float(two[name].sum)) > 1e-5 * abs(float(one[name].sum)):
                self.fail(
                    f"its term {name!r} counts a row whose weights are 0: multiply each loss by "
                    f"batch['weights'] before the sum"
                )

    def test_its_gradient_is_that_of_its_loss(self) -> None:
        for slope in self._slopes():
            if abs(slope.quotient - slope.told) > self.curvature * slope.size + slope.noise:
                self.fail(slope.in_words())

    def test_scanned_and_unrolled_layers_are_one_model(self) -> None:
        if not self.unrolled:
            return
        unrolled = self.parts(model={"use": self.use, **self.settings, **self.unrolled})
        params = self._state.params
        sliced = _unrolled(params, self._model.params, unrolled.program.model.params)
        one, two = (
            float(
                jax.jit(build_loss(parts.program.model, train=False))(
                    params, self._state.buffers, self._batch, jax.random.key(1)
                )[0]
            )
            for parts, params in ((self.parts(), params), (unrolled, sliced))
        )
        if abs(one - two) > 1e-5 * abs(one):
            self.fail(f"scanned its loss is {one:.7g}, unrolled, with the same arrays, {two:.7g}")

    def test_sharded_it_begins_the_same(self) -> None:
        if different := self.sharded(first_gradient)["different"]:
            self.fail(f"on a mesh these parameters begin otherwise: {', '.join(different)}")

    def test_sharded_it_has_the_same_gradient(self) -> None:
        distance = self.sharded(first_gradient)["apart"]
        if not distance <= self.rounding:
            self.fail(
                f"on 8 devices its gradient is {distance:.2g} times its largest number apart from "
                f"that on one, more than this suite's rounding = {self.rounding}"
            )

    # ------------------------------------------------------------------

    @property
    def _model(self) -> Model:
        return self.parts().program.model

    @property
    def _state(self) -> Any:
        return self.parts().first_state

    @property
    def _batch(self) -> dict[str, Any]:
        return {name: jnp.asarray(rows) for name, rows in self.parts().batch(0).items()}

    def _terms(
        self, train: bool = False, seed: int = 1, params: Any = None, batch: Any = None
    ) -> tuple[dict[str, Any], Any]:
        parts = self.parts()
        terms = parts.terms(train)
        params = self._state.params if params is None else params
        batch = self._batch if batch is None else batch
        found: tuple[dict[str, Any], Any] = host(
            terms(params, self._state.buffers, batch, jax.random.key(seed))
        )
        return found

    def _slopes(self) -> Iterator[Slope]:
        """Yield the slopes of the loss with each parameter: where its gradient is exactly 0, along
        its gradient, and in directions of random signs.
        """
        state, batch, key = self._state, self._batch, jax.random.key(1)
        loss = build_loss(self._model)

        def value(params: Any) -> Any:
            return loss(params, state.buffers, batch, key)[0]

        total, grads = jax.jit(jax.value_and_grad(value))(state.params)
        moved = jax.jit(
            lambda params, along, by: value(jax.tree.map(lambda p, v: p + by * v, params, along))
        )
        leaves, structure = jax.tree.flatten(grads)
        nothing = [jnp.zeros_like(leaf) for leaf in leaves]

        def slope(at: int, where: str, along: Any, told: float, size: float, most: float) -> Slope:
            by = min(0.0025 * abs(float(total)) / max(size, 1e-30), most)
            tree = jax.tree.unflatten(structure, [*nothing[:at], along, *nothing[at + 1 :]])
            ahead, behind = (float(moved(state.params, tree, sign * by)) for sign in (1, -1))
            # Each loss is a sum of many float32 numbers: a few units in its last place.
            noise = 8 * float(np.finfo(np.float32).eps) * abs(float(total)) / by
            return Slope(paths[at], where, (ahead - behind) / (2 * by), told, size, noise)

        paths = [info.path for info in jax.tree.leaves(self._model.params)]
        for at, (leaf, array) in enumerate(zip(leaves, jax.tree.leaves(state.params), strict=True)):
            rng = np.random.default_rng(at)
            norm = float(jnp.linalg.norm(leaf.astype(jnp.float32)))
            most = 0.005 * max(float(jnp.linalg.norm(array.astype(jnp.float32))), 0.05)

            def drawn(where: Any, rng: Any = rng, leaf: Any = leaf) -> Any:
                signs = jnp.where(where, rng.choice([-1.0, 1.0], leaf.shape), 0.0)
                return (signs / max(float(jnp.linalg.norm(signs)), 1.0)).astype(leaf.dtype)

            yield slope(at, "unseen", drawn(leaf == 0), 0.0, 0.0, most)
            if not norm:
                continue
            yield slope(at, "along", leaf / norm, norm, norm, most)
            for _ in range(3):
                along = drawn(leaf != 0)
                told = float(jnp.vdot(leaf, along))
                # What is to be expected of a direction that has nothing to do with the gradient.
                size = norm / float(jnp.sum(leaf != 0)) ** 0.5
                yield slope(at, "across", along, told, size, most)


@attrs.frozen
class Slope:
    """How the loss rises with a parameter, in one direction.

    Attributes:
        where: "unseen", where its gradient is exactly 0; "along" its gradient, or "across".
        quotient: of differences.
        told: by the gradient.
        size: that of the gradient, as far as it goes in such a direction.
        noise: how far rounding may lead the quotient astray.
    """

    path: str
    where: str
    quotient: float
    told: float
    size: float
    noise: float

    def in_words(self) -> str:
        """Say that the two are too far apart."""
        if self.where == "unseen":
            return (
                f"no gradient reaches {self.path}, or a part of it, and the loss depends on that: "
                f"{self.quotient:.3g} where rounding explains {self.noise:.2g}"
            )
        where = "along its gradient" if self.where == "along" else "in a direction drawn at random"
        return (
            f"{where} the loss rises with {self.path} by {self.quotient:.4g}, and the gradient "
            f"says {self.told:.4g} (rounding explains {self.noise:.2g}): is there a "
            f"stop_gradient, or a derivative of its own that is not right?"
        )


def _problems(path: str, info: Any) -> list[str]:
    if not isinstance(info, ParamInfo):
        return [f"{path} has a {type(info).__name__}, not a ParamInfo"]
    found = []
    if info.path != path:
        found.append(f"{path} says that its path is {info.path}")
    roles = {axis.role for axis in info.axes}
    if info.kind == "matrix" and not {"in", "out"} <= roles:
        found.append(f"{path} is a matrix; which of its axes are in, and which out?")
    return found


def _unrolled(params: Any, scanned: Any, unrolled: Any) -> Any:
    """Return the parameters of unrolled layers: `layers/0/x` is the first part of `layers/x`."""
    arrays = dict(
        zip([info.path for info in jax.tree.leaves(scanned)], jax.tree.leaves(params), strict=True)
    )
    infos = {info.path: info for info in jax.tree.leaves(scanned)}

    def part(info: ParamInfo) -> Any:
        names = info.path.split("/")
        numbers = [int(name) for name in names if name.isdigit()]
        path = "/".join(name for name in names if not name.isdigit())
        array = arrays[info.path if info.path in arrays else path]
        stacked = [] if info.path in arrays else infos[path].axes
        for axis, each in reversed(list(enumerate(stacked))):
            if each.role == "stack":
                array = jnp.take(array, numbers.pop(), axis=axis)
        return array

    return jax.tree.map(part, unrolled)
