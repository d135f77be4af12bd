"""Everything that a run is made of, built once, on shapes alone, from what its plugins answer."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import attrs
import jax
import jax.numpy as jnp
import numpy as np

from trainer_core.errors import UserError
from trainer_core.hooks import Hooks
from trainer_core.loss import build_loss
from trainer_core.optimizer_table import Row, as_json, check_recorded, optimizer_table
from trainer_core.randomness import fold
from trainer_core.run import Run
from trainer_core.types import (
    Batch,
    Data,
    Metrics,
    Model,
    ParamInfo,
    Params,
    Shardings,
    Step,
    StepFn,
    TrainState,
)

if TYPE_CHECKING:
    import optax


@attrs.frozen(kw_only=True, eq=False)
class Program:
    """What a run is made of; nothing in it holds a parameter.

    Attributes:
        step: the pure step function, `compile_step` compiles it.
        abstract_state: a `jax.ShapeDtypeStruct` with its sharding for every leaf.
        abstract_batch: the same for a global batch.
        optimizer_table: what the optimizer does with each parameter.
    """

    run: Run
    model: Model
    data: Data
    schedule: Callable[[Any], Any]
    optimizer: optax.GradientTransformation
    step: Step
    shardings: Shardings
    abstract_state: TrainState
    abstract_batch: dict[str, jax.ShapeDtypeStruct]
    optimizer_table: tuple[Row, ...]

    @property
    def param_count(self) -> int:
        return sum(
            int(np.prod(info.shape))
            for info in jax.tree.leaves(self.model.params)
            if info.tied_to is None
        )

    @property
    def optimizer_record(self) -> dict[str, Any]:
        """What the optimizer does with each parameter, as JSON values."""
        return as_json(self.optimizer_table)

    @property
    def tokens_per_step(self) -> int | None:
        """Tokens in a global batch; None where the batches hold none."""
        tokens = self.abstract_batch.get("tokens")
        return None if tokens is None else int(np.prod(tokens.shape))

    def check_optimizer(self) -> None:
        """Refuse to go on with checkpoints that another optimizer's rules made.

        Raises:
            UserError: with the paths whose rule has changed.
        """
        check_recorded(self.optimizer_table, self.run.directory)

    def place(self, batch: Batch) -> Batch:
        """Put this process's rows of a batch where the step wants them."""
        sharding = self.shardings.batch
        if self.run.processes == 1:
            placed: Batch = jax.device_put(batch, sharding)
            return placed
        return {
            name: jax.make_array_from_process_local_data(sharding, rows)
            for name, rows in batch.items()
        }

    def initial_state(self) -> TrainState:
        """Initialise under jit, straight into the shards: never whole on one device."""
        seed = self.run.settings.seed
        initialise = functools.partial(_initial_state, self.model, self.optimizer, self.step)
        state: TrainState = jax.jit(initialise, out_shardings=self.shardings.state)(
            jax.random.key(seed)
        )
        return state

    def compile_step(self) -> StepFn:
        """Compile the step ahead of time."""
        compiled: StepFn = self.trace_step().lower().compile()
        return compiled

    def trace_step(self) -> jax.stages.Traced:
        """Trace the step as it is compiled: the state donated, every sharding given."""
        shardings = self.shardings
        traced = jax.jit(
            self.step.apply,
            donate_argnums=0,
            in_shardings=(shardings.state, shardings.batch),
            out_shardings=(shardings.state, shardings.replicated),
        ).trace(self.abstract_state, self.abstract_batch)
        _check_step(self.abstract_state, *traced.out_info)
        return traced


def build_program(run: Run, hooks: Hooks) -> Program:
    """Ask every plugin for its part.

    Args:
        run: the run.
        hooks: its plugins.

    Raises:
        UserError: parts that do not fit each other.
    """
    # Data first: its faults are the most common, and the quickest to find.
    _check_batch_size(run)
    data = hooks.build_data(run=run)
    beginning = data.state()
    rows = data.batch(0)
    shapes = _batch_shapes(run, rows)
    if beginning is not None:
        data.load(beginning)  # a stream: the run has not taken its first batch yet
    model = hooks.build_state(run=run, batch=dict(shapes))
    _check_tokens(model, data, rows)
    key = jax.eval_shape(lambda: jax.random.key(0))
    params, buffers = jax.eval_shape(model.init, key)
    _check_infos(model.params, params, "parameter")
    _check_infos(model.buffers, buffers, "buffer")
    schedule = hooks.build_schedule(run=run)
    optimizer = hooks.build_optimizer(run=run, model=model, learning_rate=schedule)
    told = hooks.describe_optimizer(run=run, model=model)
    loss = build_loss(model)
    jax.eval_shape(loss, params, buffers, shapes, key, None)
    grad_fn = hooks.accumulate(run=run, model=model, loss=loss)
    step = hooks.step(run=run, grad_fn=grad_fn, optimizer=optimizer, learning_rate=schedule)

    derive = functools.partial(_derived_state, optimizer, step)
    opt_state, extra = jax.eval_shape(derive, params)
    table = optimizer_table(model.params, told, opt_state)
    number = jax.ShapeDtypeStruct((), jnp.int32)
    state = TrainState(number, params, buffers, opt_state, key, extra)
    shardings = hooks.shard(run=run, model=model, abstract_state=state, derive=derive)
    return Program(
        run=run,
        model=model,
        data=data,
        schedule=schedule,
        optimizer=optimizer,
        step=step,
        shardings=shardings,
        abstract_state=jax.tree.map(_with_sharding, state, shardings.state),
        abstract_batch={
            name: _with_sharding(leaf, shardings.batch) for name, leaf in shapes.items()
        },
        optimizer_table=table,
    )


def _initial_state(
    model: Model, optimizer: optax.GradientTransformation, step: Step, key: jax.Array
) -> TrainState:
    params, buffers = model.init(fold(key, "init"))
    opt_state, extra = _derived_state(optimizer, step, params)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        buffers=buffers,
        opt_state=opt_state,
        key=fold(key, "train"),
        extra=extra,
    )


def _derived_state(
    optimizer: optax.GradientTransformation, step: Step, params: Params
) -> tuple[Any, dict[str, Any]]:
    return optimizer.init(params), step.init(params)


def _with_sharding(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _check_batch_size(run: Run) -> None:
    parts = run.axes.batch_parts()
    if run.batch_size % parts:
        raise UserError(
            f"[data] batch_size = {run.batch_size} must be divisible by the {parts} devices that "
            f"[shard] mesh spreads a batch over; the next that fits is "
            f"{-(-run.batch_size // parts) * parts}",
            "data.batch_size",
            "shard.mesh",
        )


def _batch_shapes(run: Run, rows: dict[str, np.ndarray]) -> dict[str, jax.ShapeDtypeStruct]:
    shapes = {}
    for name, array in rows.items():
        if array.shape[:1] != (run.batch_size // run.processes,):
            hint = (
                ""
                if "batch_size" in run.config["data"]
                else ("; the data plugin has no such setting, and needs one: batch_size: int")
            )
            raise UserError(
                f"[data]: batch()[{name!r}] has shape {array.shape}; expected "
                f"{run.batch_size // run.processes} rows first: [data] batch_size = "
                f"{run.batch_size} over {run.processes} processes{hint}",
                "data.use",
            )
        shapes[name] = jax.ShapeDtypeStruct((run.batch_size, *array.shape[1:]), array.dtype)
    return shapes


def _check_step(given: TrainState, returned: TrainState, metrics: Metrics) -> None:
    """The next step takes what this one gives back, and a metric is one number."""
    pairs = zip(jax.tree_util.tree_leaves_with_path(given), jax.tree.leaves(returned), strict=True)
    problems = [
        f"state{jax.tree_util.keystr(path)} goes in as {a.dtype}{list(a.shape)} and comes out as "
        f"{b.dtype}{list(b.shape)}"
        for (path, a), b in pairs
        if (a.shape, a.dtype) != (b.shape, b.dtype)
    ]
    problems += [
        f"the metric {name!r} has shape {tuple(each.shape)}, not that of a scalar"
        for name, each in metrics.items()
        if each.shape
    ]
    if problems:
        raise UserError(f"the step does not fit the loop: {'; '.join(problems)}")


def _check_tokens(model: Model, data: Data, rows: dict[str, np.ndarray]) -> None:
    """What the data says of its tokens, and the first batch itself, must fit the model."""
    keys = ("model.vocab", "model.context", "data.use", "data.length")
    largest = 0 if data.vocabulary is None else data.vocabulary - 1
    for name in ("tokens", "targets"):
        array = rows.get(name, np.zeros(0))
        if not array.size or not np.issubdtype(array.dtype, np.integer):
            continue
        if array.min() < 0:
            raise UserError(
                f"[data]: batch()[{name!r}] has a token {array.min()}; none is < 0", *keys
            )
        largest = max(largest, int(array.max()))
    if model.vocabulary and largest >= model.vocabulary:
        raise UserError(
            f"[data] has tokens up to {largest}, and the model knows only {model.vocabulary}; set "
            f"model.vocab={largest + 1}",
            *keys,
        )
    length = rows["tokens"].shape[1] if rows.get("tokens", np.zeros(0)).ndim == 2 else 0
    if model.context is not None and length > model.context:
        raise UserError(
            f"[data] has sequences of {length} tokens, and the model is meant for "
            f"{model.context}; set data.length={model.context}, or model.context={length}",
            *keys,
        )


def _check_infos(infos: Any, arrays: Any, what: str) -> None:
    """Every array has its ParamInfo, of the same shape and dtype, and the reverse."""
    known = dict(_by_path(infos))
    problems = []
    for path, array in _by_path(arrays):
        info = known.pop(path, None)
        if not isinstance(info, ParamInfo):
            problems.append(f"{path} has no ParamInfo")
        elif (info.shape, info.dtype) != (array.shape, array.dtype):
            problems.append(
                f"{path} is {array.dtype}{list(array.shape)}, its ParamInfo says "
                f"{info.dtype}{list(info.shape)}"
            )
    problems += [f"{path} has a ParamInfo and no array" for path in known]
    if problems:
        raise UserError(f"the model describes its {what}s wrongly: {'; '.join(problems)}")


def _by_path(tree: Any) -> list[tuple[str, Any]]:
    return [
        ("/".join(str(entry.key) for entry in path), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]
