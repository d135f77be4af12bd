"""Models that mix Linen and NNX, each way round, with all that a block may have, and their data."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

from trainer_core import Data, Term, cross_entropy, hookimpl, plugin

NAMES = ("embed", "mlp")


class LinenBlock(nn.Module):
    """Norm, named kernel, dropout, and a term that it sows."""

    named: Any = nn.with_logical_partitioning

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        init = nn.initializers.lecun_normal()
        init = self.named(init, NAMES) if self.named else init
        x = nn.BatchNorm(use_running_average=not train)(x)
        x = nn.relu(nn.Dense(8, kernel_init=init)(x))
        self.sow("losses", "size", Term(jnp.sum(x**2), float(len(x))))
        self.sow("intermediates", "hidden", x)
        return nn.Dropout(0.5, deterministic=not train)(x)


class InNNX(nnx.Module):
    """Holds a Linen block."""

    def __init__(self, rngs: nnx.Rngs, named: Any = nn.with_logical_partitioning) -> None:
        self.block = nnx.bridge.ToNNX(LinenBlock(named), rngs=rngs)
        self.block.lazy_init(jnp.zeros((1, 8)), train=False)
        self.out = nnx.Linear(8, 3, rngs=rngs)
        self.deterministic = True  # nnx.Module.train and eval set it

    def terms(self, batch: Any) -> dict[str, Term]:
        train = not self.deterministic
        x = self.block(batch["x"], train=train, mutable=["batch_stats", "losses"])
        return {"loss": cross_entropy(self.out(x), batch["labels"])}


@nnx.register_variable_name("losses", overwrite=True)
class Sown(nnx.Variable[Any]):
    """What is sown into Linen's collection `losses`."""


class NNXBlock(nnx.Module):
    """The same in NNX; the kernel is in a list."""

    def __init__(self, deterministic: bool, *, rngs: nnx.Rngs) -> None:
        init = nnx.with_partitioning(nnx.initializers.lecun_normal(), NAMES)
        self.norm = nnx.BatchNorm(8, use_running_average=deterministic, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(8, 8, kernel_init=init, rngs=rngs)])
        self.dropout = nnx.Dropout(0.5, deterministic=deterministic, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.layers[0](self.norm(x)))
        self.size = Sown((Term(jnp.sum(x**2), float(len(x))),))
        self.hidden = nnx.Intermediate(x)
        return self.dropout(x)


class InLinen(nn.Module):
    """Holds an NNX block."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = nnx.bridge.to_linen(NNXBlock, not train, name="block")(x)
        return nn.Dense(3, name="out")(x)

    def terms(self, batch: Any, train: bool) -> dict[str, Term]:
        return {"loss": cross_entropy(self(batch["x"], train), batch["labels"])}


def rows(seed: Any = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    x = random.normal(size=(16, 8)).astype(np.float32)
    return {"x": x, "labels": x[:, :3].argmax(-1).astype(np.int32)}


@plugin
class Rows:
    """Random rows, whose label is the largest of the first three numbers."""

    batch_size: int = 16

    @hookimpl
    def build_data(self) -> Data:
        return _Rows()


class _Rows(Data):
    def batch(self, step: int) -> dict[str, np.ndarray]:
        return rows(step)
