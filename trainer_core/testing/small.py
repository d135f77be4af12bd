"""A model and its data, small and with everything that such may have, to try plugins on."""

from __future__ import annotations

import math
from typing import Any

import attrs
import jax
import jax.numpy as jnp
import numpy as np

from trainer_core import Axis, Data, Model, ParamInfo, Term, hookimpl, plugin, setting

COEFFICIENTS = {"squares": 1.0, "sizes": 0.3, "penalty": 0.05}


@plugin
class Perceptron:
    """One hidden layer of tanh, and everything that a model may have: terms with different
    weights, an auxiliary mean, dropout, a buffer that depends on the order of batches, a stack
    of scanned layers, and a parameter whose gradient the batch can spoil.
    """

    inputs: int = setting(8, "numbers of a row")
    width: int = setting(16, "of the hidden layer")
    outputs: int = setting(8, "numbers to predict")
    depth: int = setting(0, "scanned layers between the hidden one and the output")
    terms: list[str] = setting(attrs.Factory(lambda: ["squares"]), "of the loss")
    dropout: float = setting(0.0, "share of the hidden layer that training drops")
    dtype: str = setting("float32", "of the parameters")
    random_init: bool = setting(False, "draw every parameter by itself")
    axis: str = setting("embed", "the logical name of the input axis")

    @hookimpl
    def build_state(self) -> Model:
        return Model(
            init=self.init,
            terms=self.losses,
            params=self.infos(),
            buffers={"average": _info("average", (self.inputs,), (None,), "other", "float32")},
            coefficients={name: COEFFICIENTS[name] for name in self.terms},
        )

    def infos(self) -> dict[str, Any]:
        hidden = (self.inputs, self.width)
        infos: dict[str, Any] = {
            "hidden": {
                "kernel": self._info("hidden/kernel", hidden, (self.axis, "mlp"), "matrix"),
                "bias": self._info("hidden/bias", (self.width,), ("mlp",), "bias"),
            },
            "gain": self._info("gain", (self.width,), ("norm",), "norm"),
            "out": {
                "kernel": self._info(
                    "out/kernel", (self.width, self.outputs), ("mlp", "embed"), "matrix"
                )
            },
        }
        if self.depth:
            shape = (self.depth, self.width, self.width)
            infos["stack"] = self._info("stack", shape, ("layers", None, "mlp"), "matrix")
        return infos

    def init(self, key: jax.Array) -> tuple[dict[str, Any], dict[str, Any]]:
        leaves, structure = jax.tree.flatten(self.infos())
        # One draw for all parameters unless `random_init`: half the time of many to compile.
        first = jax.random.uniform(key) * 6
        arrays = []
        for index, info in enumerate(leaves):
            if self.random_init:
                array = jax.random.normal(jax.random.fold_in(key, index), info.shape)
            else:
                places = jnp.arange(math.prod(info.shape), dtype=jnp.float32) + 100.0 * index
                array = jnp.sin(first + places).reshape(info.shape)
            arrays.append((array / info.shape[0] ** 0.5).astype(info.dtype))
        return jax.tree.unflatten(structure, arrays), {"average": jnp.zeros((self.inputs,))}

    def losses(
        self, params: Any, buffers: Any, batch: Any, key: jax.Array, train: bool
    ) -> tuple[dict[str, Term], Any]:
        x, weights = batch["x"], batch["weights"]
        bias = _spoiled(params["hidden"]["bias"], batch["spoil"][0])
        hidden = params["gain"] * jnp.tanh(x @ params["hidden"]["kernel"] + bias)  # [batch, width]
        if self.depth:
            hidden, _ = jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), hidden, params["stack"])
        if train and self.dropout:
            kept = jax.random.bernoulli(key, 1 - self.dropout, hidden.shape)
            hidden = jnp.where(kept, hidden / (1 - self.dropout), 0)
        y = hidden @ params["out"]["kernel"]  # [batch, outputs]
        squares = jnp.sum((y - batch["targets"]) ** 2, axis=-1)
        found = {
            "squares": Term(jnp.sum(weights * squares), jnp.sum(weights)),
            "sizes": Term(
                jnp.sum(batch["others"] * jnp.sum(y**2, axis=-1)), jnp.sum(batch["others"])
            ),
            # A mean that knows no weights: 1 a microbatch, so that it is averaged over them.
            "penalty": Term(jnp.mean(hidden**2), 1.0),
        }
        if train:
            buffers = {"average": 0.5 * buffers["average"] + 0.5 * jnp.mean(x, axis=0)}
        return {name: found[name] for name in self.terms}, buffers

    def _info(self, path: str, shape: Any, names: Any, kind: Any) -> ParamInfo:
        return _info(path, shape, names, kind, self.dtype)


@plugin
class Examples:
    """Random rows, a pure function of seed and step, with ragged weights."""

    batch_size: int = setting(16, "rows of a batch")
    inputs: int = setting(8, "numbers of a row")
    outputs: int = setting(8, "numbers to predict")
    held_out: int = setting(32, "how many rows are never trained on")
    nan_loss: list[int] = setting(attrs.Factory(list), "steps, from 0, with a NaN in a target")
    nan_gradient: list[int] = setting(
        attrs.Factory(list), "steps whose gradient of hidden/bias is NaN, and nothing else"
    )
    spiked: list[int] = setting(attrs.Factory(list), "steps with targets ten times as large")

    @hookimpl
    def build_data(self, run: Any) -> Data:
        return _Rows(self, run.settings.seed, run.rows)


class _Rows(Data):
    def __init__(self, settings: Examples, seed: int, own: range) -> None:
        self.settings, self.seed = settings, seed
        self.own = slice(own.start, own.stop)  # of each batch, those of this process
        self.held_out_batches = settings.held_out // settings.batch_size

    def batch(self, step: int) -> dict[str, np.ndarray]:
        rows = self._rows(step)
        rows = {name: array[self.own] for name, array in rows.items()}
        if step in self.settings.nan_loss:
            rows["targets"][0, 0] = np.nan
            rows["weights"][0] = 1.0
        if step in self.settings.nan_gradient:
            rows["spoil"][:] = np.nan
        if step in self.settings.spiked:
            rows["targets"] *= 10
        return rows

    def held_out(self, index: int) -> dict[str, np.ndarray]:
        given = self.settings
        pool = rows(given.held_out, given.inputs, given.outputs, [self.seed, 1_000_000])
        begin = index * given.batch_size
        whole = {name: array[begin : begin + given.batch_size] for name, array in pool.items()}
        return {name: array[self.own] for name, array in whole.items()}

    def _rows(self, index: int) -> dict[str, np.ndarray]:
        given = self.settings
        return rows(given.batch_size, given.inputs, given.outputs, [self.seed, index])


@plugin
class Tokens:
    """Random tokens, a pure function of seed and step, with ragged weights."""

    batch_size: int = setting(8, "rows of a batch", unit="sequences")
    length: int = setting(12, "of a row", unit="tokens")
    vocab: int = setting(64, "tokens are smaller than this", unit="tokens")

    @hookimpl
    def build_data(self, run: Any) -> Data:
        return _Sentences(self, run.settings.seed, run.rows)


class _Sentences(Data):
    def __init__(self, settings: Tokens, seed: int, own: range) -> None:
        self.settings, self.seed = settings, seed
        self.own = slice(own.start, own.stop)
        self.vocabulary = settings.vocab

    def batch(self, step: int) -> dict[str, np.ndarray]:
        given = self.settings
        random = np.random.default_rng([self.seed, step])
        tokens = random.integers(0, given.vocab, (given.batch_size, given.length + 1))
        weights = random.integers(0, 3, (given.batch_size, given.length))
        return {
            "tokens": tokens[self.own, :-1].astype(np.int32),
            "targets": tokens[self.own, 1:].astype(np.int32),
            "weights": weights[self.own].astype(np.float32),
        }


def rows(count: int, inputs: int = 8, outputs: int = 8, seed: Any = 0) -> dict[str, np.ndarray]:
    """Return a batch for the perceptron, its weights ragged: whole numbers from 0 to 3."""
    random = np.random.default_rng(seed)
    batch = {
        "x": random.normal(size=(count, inputs)),
        "targets": random.normal(size=(count, outputs)),
        "weights": random.integers(0, 4, count),
        "others": random.integers(0, 4, count),
        "spoil": np.ones(count),
    }
    return {name: array.astype(np.float32) for name, array in batch.items()}


@jax.custom_jvp
def _spoiled(x: jax.Array, factor: jax.Array) -> jax.Array:
    """`x`, whose derivative is `factor`: a NaN in the gradient and nowhere else."""
    return x


@_spoiled.defjvp
def _spoiled_jvp(primals: Any, tangents: Any) -> Any:
    return primals[0], tangents[0] * primals[1].astype(primals[0].dtype)


def _info(path: str, shape: Any, names: Any, kind: Any, dtype: str) -> ParamInfo:
    roles: Any = (
        ("stack", "in", "out")[-len(shape) :] if kind == "matrix" else ("other",) * len(shape)
    )
    axes = tuple(Axis(name, role) for name, role in zip(names, roles, strict=True))
    return ParamInfo(path, tuple(shape), jnp.dtype(dtype), axes, kind)
