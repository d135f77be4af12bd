"""Every hook of a run, in the order of a run. What is here is all that a plugin may replace.

Two rules hold for all of them. A hook runs on the host, on every process, while a run is set up
or between two steps: it never sees a tracer. A hook that contributes to the compiled step
returns a pure function, which the core compiles once.

An implementation names only the arguments that it wants, so that a new argument breaks no one.
The hooks marked *one* are answered by the plugin that the config names for their slot, and by
nobody else; any plugin may wrap them (`@hookimpl(wrapper=True)`). The others are answered by
every plugin of the run, the last named first.

How the list may change, `docs/hooks.md` says: what is to go is marked by a `HookDeprecation` first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trainer_core.plugin import hookspec

if TYPE_CHECKING:
    from collections.abc import Callable

    import jax
    import optax

    from trainer_core.program import Program
    from trainer_core.run import Run
    from trainer_core.types import (
        Data,
        GradFn,
        LossFn,
        Metrics,
        Model,
        Params,
        Shardings,
        Step,
        StepFn,
        TrainState,
    )


class TrainerSpec:
    # ------------------------------------------------------------------ building a run
    # Each is called once, on shapes alone: no parameter exists yet.

    @hookspec(firstresult=True)
    def build_data(self, run: Run) -> Data | None:
        """Return the source of this process's batches. One: `[data]`.

        Called first of all. Settings and paths are checked here; reading may wait until the
        first batch, which is asked for at once, to know its shapes (a stream is then set back
        by `load`).
        """

    @hookspec(firstresult=True)
    def build_state(self, run: Run, batch: dict[str, jax.ShapeDtypeStruct]) -> Model | None:
        """Return the model as pure functions. One: the `[model]` slot.

        Nothing is allocated here: `Model.init` runs later, under jit. `batch` has the shape and
        dtype of each array of a global batch, for models whose parameters follow from them.
        """

    @hookspec(firstresult=True)
    def build_schedule(self, run: Run) -> Callable[[Any], Any] | None:
        """Return the learning rate by optimizer step, an `optax.Schedule`. One: `[schedule]`.

        The schedule counts the updates that were applied: a skipped step does not advance it.
        """

    @hookspec(firstresult=True)
    def build_optimizer(
        self, run: Run, model: Model, learning_rate: Callable[[Any], Any]
    ) -> optax.GradientTransformation | None:
        """Return any optax transformation, with extra args too. One: `[optimizer]`.

        It reads `model.params` (a ParamInfo for each parameter), never a name. Its `init` is
        called under jit, on sharded parameters; its updates are added to the parameters.
        """

    @hookspec(firstresult=True)
    def describe_optimizer(self, run: Run, model: Model) -> dict[str, dict[str, Any]] | None:
        """Return what the optimizer does with each parameter: path to column to value.

        One: the `[optimizer]` slot, which may leave it out. A value is a number, a text, or a
        list of these, one for each block of a fused parameter. The column `rule` names what
        updates the parameter; a run does not go on where that has changed. `trainer explain
        optimizer` shows all columns, `optimizer.json` in the run directory records them.
        """

    @hookspec(firstresult=True)
    def accumulate(self, run: Run, model: Model, loss: LossFn) -> GradFn | None:
        """Return `grad_fn(params, buffers, batch, key) -> Gradient`. One: `[accumulate]`.

        `loss(params, buffers, batch, key, weights)` returns the loss of a microbatch, already
        divided by the weights of the whole global batch, and `(terms, buffers)`. The result is
        traced inside the step. Wrappers are welcome: gradient noise, norms by parameter.
        """

    @hookspec(firstresult=True)
    def step(
        self,
        run: Run,
        grad_fn: GradFn,
        optimizer: optax.GradientTransformation,
        learning_rate: Callable[[Any], Any],
    ) -> Step | StepFn | None:
        """Return the pure function (state, batch) to (state, metrics). One: `[step]`.

        The core compiles it once, ahead of time, with the state donated. Metrics are scalars.
        Wrappers are welcome; one that keeps state of its own returns a `Step`, see there.
        """

    @hookspec(firstresult=True)
    def shard(
        self,
        run: Run,
        model: Model,
        abstract_state: TrainState,
        derive: Callable[[Params], tuple[Any, dict[str, Any]]],
    ) -> Shardings | None:
        """Return a NamedSharding for every leaf of the state, and the batch's. One: `[shard]`.

        `abstract_state` has a `jax.ShapeDtypeStruct` for each leaf. `derive(params)` is pure and
        returns `(opt_state, extra)`, the part of the state that is made from the parameters.
        """

    # ------------------------------------------------------------------ the state

    @hookspec(firstresult=True)
    def restore(self, run: Run, like: TrainState, data: Data) -> TrainState | None:
        """Return the newest saved state that can be trusted, or None. One: `[checkpoint]`.

        `like` carries shapes, dtypes and shardings. None means that nothing was ever saved;
        a checkpoint that exists and cannot be trusted is an error. The implementation hands a
        stream's position back by `data.load`.
        """

    @hookspec
    def start(self, run: Run, program: Program, step: int) -> None:
        """The state is ready and `step` steps are behind it; the first step comes next.

        Every plugin is called, once. `program` holds all that was built. The run directory
        exists from here on.
        """

    # ------------------------------------------------------------------ between steps

    @hookspec
    def report(self, run: Run, step: int, metrics: Metrics) -> None:
        """Numbers of a finished step, as Python floats and ints. Every plugin is called.

        Called where `run.log_every` is due, at the last step, and after each evaluation; one
        step late, so that the host never waits for the device. Raising stops the run.
        """

    @hookspec
    def evaluate(self, run: Run, step: int, state: TrainState) -> Metrics | None:
        """Return metrics of the state, such as `eval_loss`. Every plugin may answer.

        Called where `run.eval_every` is due and at the end. The state is only lent: it is
        donated to the next step, so keep no reference to it.
        """

    @hookspec
    def save(self, run: Run, step: int, state: TrainState, data: Data) -> None:
        """Save the state after `step` steps. Every plugin is called.

        Called every `[checkpoint] every` steps and at the end, each step at most once. The
        state is only lent, as for `evaluate`. It was reported before, so that a state that is
        not finite is never saved. The data source advances only after this.
        """

    @hookspec
    def phase(self, run: Run, name: str, program: Program | None) -> None:
        """The run enters a phase: building, restoring, compiling, initialising, training,
        evaluating, saving, closing. Every plugin is called; for displays and watchdogs.

        `program` holds all that was built: None in building and in closing. In restoring and
        compiling, which may take minutes, it says what the run will be.
        """

    @hookspec
    def close(self, run: Run, error: BaseException | None) -> None:
        """Release what the plugin holds. Every plugin is called, also after an error.

        An asynchronous save must be finished, or raise, before this returns.
        """
