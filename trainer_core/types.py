"""The types that cross a hook: frozen, plain nested dicts of arrays, nothing of any framework."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import attrs
import jax
import numpy as np
from jax.sharding import NamedSharding

from trainer_core.kinds import Kind, Role

Params: TypeAlias = dict[str, Any]  # nested dicts with string keys; the leaves are arrays
Buffers: TypeAlias = dict[str, Any]
Batch: TypeAlias = dict[str, Any]  # flat: name to array; the first axis is the batch
Metrics: TypeAlias = dict[str, Any]  # flat: name to a scalar


@attrs.frozen
class Axis:
    """One array axis of a parameter.

    Attributes:
        name: its logical name, which `[shard] rules` maps to mesh axes; None: never sharded.
        role: `in` is summed over when the parameter is applied, `out` is produced, `stack`
            counts equal matrices (layers, experts), `other` is none of these.
    """

    name: str | None
    role: Role = "other"


@attrs.frozen
class ParamInfo:
    """What the optimizer, the sharding and the reports know of one array of the state.

    Attributes:
        path: its keys joined by `/`; the same for Linen and NNX.
        shape: its whole shape, all devices together.
        dtype: the dtype in which it is kept.
        axes: one for each array axis.
        kind: what it is for; `other` where the model does not say.
        blocks: the parts of a fused projection: name to size, along the `out` axes, in order.
        tied_to: the path of the parameter whose array this one shares.
    """

    path: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    axes: tuple[Axis, ...]
    kind: Kind = "other"
    blocks: tuple[tuple[str, int], ...] = ()
    tied_to: str | None = None

    def __attrs_post_init__(self) -> None:
        if len(self.axes) != len(self.shape):
            raise ValueError(
                f"parameter {self.path}: {len(self.axes)} logical axes for shape {self.shape}; "
                f"give one axis for each dimension"
            )

    @property
    def abstract(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(self.shape, self.dtype)


@attrs.frozen
class Term:
    """One part of the loss: a sum over examples, and the weight by which to divide it.

    Both are float32 scalars. The weight must depend on the batch alone, never on a parameter:
    the core adds it up over the whole global batch before the first gradient is taken.
    """

    sum: Any
    weight: Any


@attrs.frozen(kw_only=True)
class Model:
    """A model as pure functions over plain trees.

    Attributes:
        init: `init(key) -> (params, buffers)`; runs under jit, straight into its shards.
        terms: `terms(params, buffers, batch, key, train) -> ({name: Term}, buffers)`;
            `train` is a Python bool, `key` the key of this step and microbatch.
        params: a ParamInfo for each trained array, in the tree that `init` returns.
        buffers: the same for every other persistent array (batch statistics, routing tables).
        coefficients: by which each term counts in the loss; 1.0 where a term is not named,
            0.0 for one that is only reported.
        logits: `logits(params, buffers, batch) -> [batch, length, vocab]` float32, where the
            model has some; `trainer sample` needs it.
        vocabulary: how many tokens the model knows; None where it reads none.
        context: how many tokens it can read at once; None where there is no such bound.
        summary: what to show of it at the start: name to text.
    """

    init: Callable[[jax.Array], tuple[Params, Buffers]]
    terms: Callable[[Params, Buffers, Batch, jax.Array, bool], tuple[dict[str, Term], Buffers]]
    params: dict[str, Any]
    buffers: dict[str, Any] = attrs.field(factory=dict)
    coefficients: Mapping[str, float] = attrs.field(factory=dict)
    logits: Callable[[Params, Buffers, Batch], jax.Array] | None = None
    vocabulary: int | None = None
    context: int | None = None
    summary: Mapping[str, str] = attrs.field(factory=dict)

    def coefficient(self, term: str) -> float:
        return float(self.coefficients.get(term, 1.0))


@attrs.frozen
class TrainState:
    """All that a run needs to go on exactly where it was.

    Attributes:
        step: int32 scalar, the number of steps made.
        params, buffers: as the model's `init` returns them.
        opt_state: as the optimizer's `init` returns it.
        key: the run's typed PRNG key. It never changes: the randomness of a step is a pure
            function of (key, step, microbatch, module path).
        extra: what the step and its wrappers keep for themselves: their name to a tree.
    """

    step: Any
    params: Params
    buffers: Buffers
    opt_state: Any
    key: Any
    extra: dict[str, Any] = attrs.field(factory=dict)


@attrs.frozen
class Gradient:
    """What `grad_fn(params, buffers, batch, key)` returns for a global batch.

    Attributes:
        grads: the gradient of the loss, in the tree of the parameters.
        loss: float32 scalar, `Σ coefficient_i · Σ sum_i / Σ weight_i`.
        terms: each term's sum and weight over the whole global batch.
        buffers: after the last microbatch.
    """

    grads: Params
    loss: Any
    terms: dict[str, Term]
    buffers: Buffers


for _cls in (Term, TrainState, Gradient):
    jax.tree_util.register_dataclass(
        _cls, data_fields=[field.name for field in attrs.fields(_cls)], meta_fields=[]
    )

LossFn: TypeAlias = Callable[..., Any]
GradFn: TypeAlias = Callable[[Params, Buffers, Batch, jax.Array], Gradient]
StepFn: TypeAlias = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def _no_extra(params: Params) -> dict[str, Any]:
    return {}


@attrs.frozen
class Step:
    """A step function and the state that it keeps for itself; calling it calls the function.

    A wrapper that needs state of its own evolves both:
    `attrs.evolve(inner, apply=..., init=lambda params: inner.init(params) | {"ema": params})`.
    One that needs none may return a plain function.

    Attributes:
        apply: pure, `apply(state, batch) -> (state, metrics)`.
        init: `init(params) -> {name: tree}`, the first value of `TrainState.extra`.
    """

    apply: StepFn
    init: Callable[[Params], dict[str, Any]] = _no_extra

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        return self.apply(state, batch)


@attrs.frozen
class Shardings:
    """Where everything lies on the mesh.

    Attributes:
        state: a TrainState with a NamedSharding for every leaf.
        batch: for every array of a batch; its first axis is the batch.
        replicated: for metrics.
    """

    state: TrainState
    batch: NamedSharding
    replicated: NamedSharding


class Data:
    """A source of batches. Subclass it, and give `batch`; the rest is optional.

    `batch(step)` is a pure function of the seed and the step, so that a resumed run, on any
    number of processes, sees each example exactly once. A source that can only stream overrides
    `state` and `load` too: what `state` returns goes into the checkpoint.

    Attributes:
        vocabulary: tokens are smaller than this; None where there are no tokens.
        held_out_batches: how many batches `held_out` has; 0 where nothing is held out.
        summary: what to show of it at the start: name to text.
    """

    vocabulary: int | None = None
    held_out_batches: int = 0
    summary: Mapping[str, str] = {}

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """Return this process's rows of the global batch of a step (counted from 0)."""
        raise NotImplementedError(f"{type(self).__name__} must define batch(step)")

    def held_out(self, index: int) -> dict[str, np.ndarray]:
        """Return this process's rows of a batch that training never sees."""
        raise IndexError(f"{type(self).__name__} holds nothing out")

    def state(self) -> dict[str, Any] | None:
        """Return where the stream is, as JSON values; None for a pure source."""
        return None

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned when the checkpoint was written."""

    def encode(self, text: str) -> np.ndarray:
        """Return the tokens of a text: [length] int32."""
        raise NotImplementedError(f"{type(self).__name__} has no tokenizer")

    def decode(self, tokens: np.ndarray) -> str:
        """Return the text of tokens: [length]."""
        raise NotImplementedError(f"{type(self).__name__} has no tokenizer")
