"""`[step]`: clip the gradient, update the parameters, and skip a step that is not finite."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import attrs
from attrs.validators import ge, gt

from trainer_core.errors import RunError, UserError, listed
from trainer_core.plugin import hookimpl, plugin, setting

if TYPE_CHECKING:
    import jax
    import optax

    from trainer_core.run import Run
    from trainer_core.types import Batch, GradFn, Gradient, Metrics, Params, Step, TrainState

_COUNTERS = ("skipped", "skipped_in_a_row", "first_nonfinite")


@plugin
class GradientStep:
    """A step whose loss or gradient is not finite changes nothing but the counters: parameters,
    buffers, optimizer state and schedule stay as they were. Losses far above those before them
    are counted, and applied like any other.

    After `max_skipped` in a row nothing is applied any more, so that the state stands as it was
    whenever the host, which reads metrics late, gets to know of it and stops the run.
    """

    clip_norm: float | None = setting(
        1.0, "scale the gradient down to this global norm; 0: never", check=ge(0)
    )
    skip_nonfinite: bool = setting(
        True, "skip a step that is not finite; false: stop the run at the first"
    )
    max_skipped: int = setting(
        10, "stop the run after this many skipped in a row", unit="steps", check=gt(0)
    )
    names: list[str] = attrs.field(init=False, factory=list)

    @property
    def patience(self) -> int:
        return self.max_skipped if self.skip_nonfinite else 1

    @hookimpl
    def step(
        self,
        run: Run,
        grad_fn: GradFn,
        optimizer: optax.GradientTransformation,
        learning_rate: Callable[[Any], Any],
    ) -> Step:
        return build_step(
            grad_fn, optimizer, learning_rate, self.clip_norm, self.patience, self.names
        )

    @hookimpl(tryfirst=True)
    def report(self, step: int, metrics: Metrics) -> None:
        if "_skipped_in_a_row" in metrics:
            self._check(step, metrics["_skipped_in_a_row"], metrics["_first_nonfinite"])

    @hookimpl(tryfirst=True)
    def save(self, step: int, state: TrainState) -> None:
        """Steps between two reports count too: what cannot go on is not saved."""
        import jax

        kept = jax.device_get(state.extra["gradient"])
        self._check(step, kept["skipped_in_a_row"], kept["first_nonfinite"])

    def _check(self, step: int, in_a_row: int, first: int) -> None:
        if in_a_row < self.patience:
            return
        name = self.names[first] if 0 <= first < len(self.names) else "the gradient's norm"
        raise RunError(
            f"stopped at step {step}: {self.patience} step{'s' * (self.patience > 1)} in a row "
            f"had no finite loss and gradient; the first that is not finite: {name}. None of these "
            f"steps was applied. Lower schedule.learning_rate, set step.clip_norm, or look at the "
            f"data of these steps"
        )


def skipped_in_a_row(state: TrainState) -> int:
    """Return how many steps up to this state were skipped, one after another.

    It waits for the state; 0 where another step made it, which keeps no such count.
    """
    import jax

    counters = state.extra.get("gradient")
    known = counters if isinstance(counters, Mapping) else {}
    return int(jax.device_get(known.get("skipped_in_a_row", 0)))


def build_step(
    grad_fn: GradFn,
    optimizer: optax.GradientTransformation,
    learning_rate: Callable[[Any], Any],
    clip_norm: float | None = 1.0,
    patience: int = 10,
    names: list[str] | None = None,
) -> Step:
    """Return the step of a global batch, and the state it keeps; usable in a loop of one's own.

    Args:
        grad_fn: from `trainer_core.build_grad`, or a wrapper of it.
        optimizer: any optax transformation; it applies the learning rate itself.
        learning_rate: the same schedule, for the metric.
        clip_norm: scale the gradient down to this global norm; None or 0: never.
        patience: apply nothing any more after this many steps in a row that are not finite.
        names: is filled, when the step is traced, with what each `_first_nonfinite` stands for.
    """
    import jax
    import jax.numpy as jnp
    import optax

    from trainer_core.defaults.spikes import no_spikes, watched
    from trainer_core.types import Step

    update = optax.with_extra_args_support(optimizer).update

    def apply(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(state.key, state.step)
        gradient = grad_fn(state.params, state.buffers, batch, key)
        finite, first, norm = _examine(gradient, names)
        counters = state.extra["gradient"]
        applied = finite & (counters["skipped_in_a_row"] < patience)
        grads = _clipped(gradient.grads, norm, clip_norm)
        # A branch, not a choice of each array afterwards: for that XLA would copy the state first.
        params, buffers, opt_state = jax.lax.cond(
            applied,
            lambda: _updated(update, state, gradient, grads),
            lambda: (state.params, state.buffers, state.opt_state),
        )
        counted = _counted(counters, applied, first)
        record = watched(state.extra["spikes"], gradient.loss)
        after = attrs.evolve(
            state,
            step=state.step + 1,
            params=params,
            buffers=buffers,
            opt_state=opt_state,
            extra=state.extra | {"gradient": counted, "spikes": record},
        )
        rate = learning_rate(state.step - counters["skipped"])
        return after, _metrics(gradient, norm, rate, counted) | {"loss_spikes": record["spikes"]}

    def init(params: Params) -> dict[str, Any]:
        counters = {name: jnp.zeros((), jnp.int32) for name in _COUNTERS}
        return {"gradient": counters, "spikes": no_spikes()}

    return Step(apply, init)


def _examine(gradient: Gradient, names: list[str] | None) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return whether all is finite, the index in `names` of the first that is not (or -1),
    and the gradient's global norm.

    A square sum is finite if and only if every element is (or it overflows, which no step
    should be made of either), so the norm's own sums answer both questions.
    """
    import jax
    import jax.numpy as jnp

    leaves = jax.tree_util.tree_leaves_with_path(gradient.grads)
    if names is not None:
        names[:] = [f"the loss term {name}" for name in gradient.terms]
        names += [f"the gradient of {_path_text(path)}" for path, _ in leaves]
    squares = [jnp.sum(jnp.square(leaf.astype(jnp.float32))) for _, leaf in leaves]
    sums = [term.sum for term in gradient.terms.values()]
    bad = ~jnp.isfinite(jnp.stack([*sums, *squares]))
    norm = jnp.sqrt(sum(squares, start=jnp.zeros((), jnp.float32)))
    first = jnp.where(jnp.any(bad), jnp.argmax(bad), -1).astype(jnp.int32)
    return jnp.isfinite(norm) & jnp.isfinite(gradient.loss) & ~jnp.any(bad), first, norm


def _counted(counters: Metrics, applied: jax.Array, first: jax.Array) -> Metrics:
    import jax.numpy as jnp

    in_a_row = jnp.where(applied, 0, counters["skipped_in_a_row"] + 1)
    # Of the first of those in a row: later ones, skipped for good, may be finite again.
    first = jnp.where(in_a_row > 1, counters["first_nonfinite"], first)
    return dict(zip(_COUNTERS, (counters["skipped"] + ~applied, in_a_row, first), strict=True))


def _metrics(gradient: Gradient, norm: jax.Array, rate: Any, counted: Metrics) -> Metrics:
    import jax.numpy as jnp

    from trainer_core.loss import losses_by_term

    return {
        "loss": gradient.loss,
        **losses_by_term(gradient.terms),
        "grad_norm": norm,
        "learning_rate": jnp.asarray(rate, jnp.float32),
        "skipped_steps": counted["skipped"],
        "_skipped_in_a_row": counted["skipped_in_a_row"],
        "_first_nonfinite": counted["first_nonfinite"],
    }


def _updated(update: Any, state: TrainState, gradient: Gradient, grads: Params) -> Any:
    """Return parameters, buffers and the optimizer's state after an update by `grads`."""
    import jax
    import optax

    from trainer_core.fitting import changes

    updates, opt_state = update(
        grads, state.opt_state, state.params, value=gradient.loss, grad=grads
    )
    given = {"updates": grads, "state": state.opt_state}
    if problems := changes(given, {"updates": updates, "state": opt_state}, dtypes=False):
        raise UserError(
            "[optimizer]: `update` must give an update for each gradient, and its state, in the "
            f"shapes in which it got them:{listed(problems)}",
            "optimizer.use",
        )
    old = (state.params, state.buffers, state.opt_state)
    new = (optax.apply_updates(state.params, updates), gradient.buffers, opt_state)
    # Gradients added up in float32 let optax promote its own bfloat16 state, which would then
    # not fit the compiled step; it is kept in the dtype in which it was made.
    return jax.tree.map(lambda before, after: after.astype(before.dtype), old, new)


def _path_text(path: Any) -> str:
    return "/".join(str(entry.key) for entry in path)


def _clipped(grads: Params, norm: jax.Array, limit: float | None) -> Params:
    import jax
    import jax.numpy as jnp

    if not limit:
        return grads
    scale = jnp.minimum(1.0, limit / jnp.maximum(norm, 1e-16))
    clipped: Params = jax.tree.map(lambda leaf: (leaf * scale).astype(leaf.dtype), grads)
    return clipped
