"""Everything that a run is made of, built once, on shapes alone, from what its plugins answer."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import attrs
import jax
import jax.numpy as jnp
import numpy as np

from trainer_core.asking import Asking
from trainer_core.fitting import (
    batch_shapes,
    check_answer,
    check_batch_size,
    check_infos,
    check_shardings,
    check_step,
    check_tokens,
    filled_batch_size,
    naming_settings,
)
from trainer_core.hooks import Hooks
from trainer_core.loss import build_loss
from trainer_core.optimizer_table import Row, as_json, check_recorded, optimizer_table
from trainer_core.randomness import fold
from trainer_core.run import Run
from trainer_core.types import (
    Batch,
    Data,
    Model,
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
        asking: what calls the data source.
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
    asking: Asking

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
        return None if tokens is None else int(self.run.batch_size * np.prod(tokens.shape[1:]))

    def check_optimizer(self) -> None:
        """Refuse to go on with checkpoints that another optimizer's rules made.

        Raises:
            UserError: with the paths whose rule has changed.
        """
        check_recorded(self.optimizer_table, self.run)

    def batch(self, step: int) -> Batch:
        """Return this process's rows of the batch after a step."""
        return self.asking(self.data.batch, "the batch after step {}", step)

    def held_out(self, index: int) -> Batch:
        """Return this process's rows of a held-out batch."""
        return self.asking(self.data.held_out, "held-out batch {}", index)

    def place(self, batch: Batch) -> Batch:
        """Put this process's rows of a batch where the step wants them.

        Where its devices do not divide a batch, which is then only evaluated, rows of weight 0
        fill it up: to the sums of the others they add 0.
        """
        sharding, size = self.shardings.batch, filled_batch_size(self.run)
        if size != self.run.batch_size:
            batch = {name: _filled(name, rows, size) for name, rows in batch.items()}
        if self.run.processes == 1:
            placed: Batch = jax.device_put(batch, sharding)
            return placed
        self.run.pass_by()
        first = self.run.rows.start

        def whole(rows: np.ndarray) -> jax.Array:
            shape = (size, *rows.shape[1:])
            places: Mapping[Any, Any] = sharding.addressable_devices_indices_map(shape)
            parts = []
            for device, (part, *others) in places.items():
                begin, end, _ = part.indices(size)
                here = (slice(begin - first, end - first), *others)
                parts.append(jax.device_put(rows[here], device))
            return jax.make_array_from_single_device_arrays(shape, sharding, parts)

        return {name: whole(rows) for name, rows in batch.items()}

    def initial_state(self) -> TrainState:
        """Initialise under jit, straight into the shards: never whole on one device."""
        state: TrainState = self.initialise(jax.random.key(self.run.settings.seed))
        return state

    @property
    def initialise(self) -> Any:
        """The jitted function from a key to the initial state."""
        initialise = functools.partial(_initial_state, self.model, self.optimizer, self.step)
        return jax.jit(initialise, out_shardings=self.shardings.state)

    def compile_step(self) -> StepFn:
        """Compile the step ahead of time."""
        return self.run.watched(self.trace_step().lower().compile())

    def trace_step(self) -> jax.stages.Traced:
        """Trace the step as it is compiled: the state donated, every sharding given."""
        shardings = self.shardings
        traced = jax.jit(
            self.step.apply,
            donate_argnums=0,
            in_shardings=(shardings.state, shardings.batch),
            out_shardings=(shardings.state, shardings.replicated),
        ).trace(self.abstract_state, self.abstract_batch)
        check_step(self.abstract_state, *traced.out_info)
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
    check_batch_size(run)
    data = hooks.build_data(run=run)
    check_answer(run, "data", data, "the data", ("batch", "held_out", "state", "load"))
    beginning = data.state()
    asking = Asking(run)
    rows = asking(data.batch, "its first batch", 0)
    shapes = batch_shapes(run, rows)
    if beginning is not None:
        data.load(beginning)  # a stream: the run has not taken its first batch yet
    model = hooks.build_state(run=run, batch=dict(shapes))
    check_answer(run, "model", model, "the model", ("init", "terms"))
    check_tokens(model, data, rows)
    key = jax.eval_shape(lambda: jax.random.key(0))
    params, buffers = jax.eval_shape(model.init, key)
    check_infos(model.params, params, "parameter")
    check_infos(model.buffers, buffers, "buffer")
    schedule = hooks.build_schedule(run=run)
    check_answer(run, "schedule", schedule, "the learning rate", ("__call__",))
    optimizer = hooks.build_optimizer(run=run, model=model, learning_rate=schedule)
    check_answer(run, "optimizer", optimizer, "the optax transformation", ("init", "update"))
    optimizer = naming_settings(run, optimizer)
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
    check_shardings(run, state, shardings)
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
        asking=asking,
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


def _filled(name: str, rows: np.ndarray, size: int) -> np.ndarray:
    """All rows of a batch, and its last again until there are so many, but for their weight."""
    last = np.zeros_like(rows[-1:]) if name == "weights" else rows[-1:]
    return np.concatenate([rows, np.repeat(last, size - len(rows), axis=0)])


def _with_sharding(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
