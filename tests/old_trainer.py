"""A trainer of one's own, as teams have it: a Linen decoder, a TrainState, a loop, Orbax."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import linen as nn
from flax import nnx
from flax.training.train_state import TrainState

from trainer_core import Data, Term, hookimpl, plugin, token_cross_entropy
from trainer_core.layers import attention, rotary, swiglu

LAYERS, VOCAB, WIDTH, HEADS, HEAD, MLP = 2, 64, 32, 2, 16, 48
KV, LENGTH, BATCH = 1, 16, 4
RATE = 3e-3


class OldDecoder(nn.Module):
    """The mathematics of the core's decoder, under other names.

    `fused`: query, key and value are one matrix, heads are not an axis of their own, and the last
    matrix of the MLP lies as PyTorch has it.
    """

    fused: bool = False

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        embed = nn.Embed(VOCAB, WIDTH, name="wte")
        x = embed(tokens)
        for layer in range(LAYERS):
            x = OldBlock(self.fused, name=f"layer_{layer}")(x)
        x = nn.RMSNorm(epsilon=1e-5, name="ln_f")(x)
        return jnp.einsum("ble,ve->blv", x, embed.embedding)


class OldBlock(nn.Module):
    fused: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.attention(nn.RMSNorm(epsilon=1e-5, name="ln_1")(x))
        hidden = nn.RMSNorm(epsilon=1e-5, name="ln_2")(x)
        gate = nn.Dense(MLP, use_bias=False, name="gate")(hidden)
        up = nn.Dense(MLP, use_bias=False, name="up")(hidden)
        if self.fused:
            weight = self.param("down", nn.initializers.normal(0.1), (WIDTH, MLP))
            return x + swiglu(gate, up) @ weight.T
        return x + nn.Dense(WIDTH, use_bias=False, name="down")(swiglu(gate, up))

    def attention(self, x: jax.Array) -> jax.Array:
        batch, length, _ = x.shape
        if self.fused:
            found = nn.Dense((HEADS + 2 * KV) * HEAD, use_bias=False, name="qkv")(x)
            found = found.reshape(batch, length, -1, HEAD)
            q, k, v = jnp.split(found, [HEADS, HEADS + KV], axis=2)
        else:
            q, k, v = (
                nn.DenseGeneral((heads, HEAD), use_bias=False, name=name)(x)
                for name, heads in (("q", HEADS), ("k", KV), ("v", KV))
            )
        positions = jnp.broadcast_to(jnp.arange(length), (batch, length))
        read = attention(rotary(q, positions, 10_000.0), rotary(k, positions, 10_000.0), v)
        if self.fused:
            return nn.Dense(WIDTH, use_bias=False, name="o")(read.reshape(batch, length, -1))
        return nn.DenseGeneral(WIDTH, axis=(-2, -1), use_bias=False, name="o")(read)


MODEL = {
    "vocab": VOCAB,
    "layers": LAYERS,
    "width": WIDTH,
    "heads": HEADS,
    "kv_heads": KV,
    "head_dim": HEAD,
    "mlp": MLP,
    "qk_norm": False,
}


class Normed(nn.Module):
    """Boxed kernels, and batch statistics."""

    @nn.compact
    def __call__(self, tokens: jax.Array, train: bool) -> jax.Array:
        kernel_init = nn.with_partitioning(nn.initializers.lecun_normal(), ("embed", "mlp"))
        x = nn.Embed(VOCAB, WIDTH, name="wte")(tokens)
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(WIDTH, kernel_init=kernel_init)(x))
        return nn.Dense(VOCAB, kernel_init=kernel_init)(x)

    def terms(self, batch: Any, train: bool) -> dict[str, Term]:
        logits = self(batch["tokens"], train)
        return {"loss": token_cross_entropy(logits, batch["targets"])}


class NormedInNNX(nnx.Module):
    """The like in NNX, with a random stream of its own."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.wte = nnx.Embed(VOCAB, WIDTH, rngs=rngs)
        self.blocks = nnx.List([nnx.Linear(WIDTH, WIDTH, rngs=rngs) for _ in range(2)])
        self.norm = nnx.BatchNorm(WIDTH, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.wte(tokens)
        for block in self.blocks:
            x = x + block(x)
        return self.wte.attend(self.dropout(self.norm(x)))

    def terms(self, batch: Any) -> dict[str, Term]:
        return {"loss": token_cross_entropy(self(batch["tokens"]), batch["targets"])}


# From the names above to those of the core's decoder.
MAPPING = r"""
[[rule]]
from = 'wte/embedding'
to = 'embed/embedding'

[[rule]]
from = 'ln_f/scale'
to = 'final_norm/scale'

[[rule]]
from = 'layer_(?P<layer>\d+)/ln_1/scale'
to = 'layers/attention_norm/scale'

[[rule]]
from = 'layer_(?P<layer>\d+)/ln_2/scale'
to = 'layers/mlp_norm/scale'

[[rule]]
from = 'layer_(?P<layer>\d+)/q/kernel'
to = 'layers/attention/query/kernel'

[[rule]]
from = 'layer_(?P<layer>\d+)/k/kernel'
to = 'layers/attention/key/kernel'

[[rule]]
from = 'layer_(?P<layer>\d+)/v/kernel'
to = 'layers/attention/value/kernel'

[[rule]]
from = 'layer_(?P<layer>\d+)/qkv/kernel'
reshape = true
[rule.split]
axis = 1
into = [
    'layers/attention/query/kernel',
    'layers/attention/key/kernel',
    'layers/attention/value/kernel',
]

[[rule]]
from = 'layer_(?P<layer>\d+)/o/kernel'
to = 'layers/attention/out/kernel'
reshape = true

[[rule]]
from = 'layer_(?P<layer>\d+)/(?P<name>gate|up|down)/kernel'
to = 'layers/mlp/{name}/kernel'

[[rule]]
from = 'layer_(?P<layer>\d+)/down'
to = 'layers/mlp/down/kernel'
transpose = [1, 0]
"""

# The same for layers that are not stacked.
UNROLLED = MAPPING.replace("'layers/", "'layers/{layer}/")


def optimizer(learning_rate: Any = None) -> optax.GradientTransformation:
    """A chain as others write it; the schedule is its own."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, RATE, 4, 20)
    return optax.chain(
        optax.clip_by_global_norm(0.5),
        optax.adamw(schedule, b2=0.95, weight_decay=0.1, mask=_decayed),
    )


def plain_optimizer() -> optax.GradientTransformation:
    """What `[optimizer] use = "adamw"` and `[step] clip_norm = 0.5` do, in a chain."""
    return optax.chain(
        optax.clip_by_global_norm(0.5), optax.adamw(RATE, b2=0.95, weight_decay=0.1, mask=_decayed)
    )


def _decayed(params: Any) -> Any:
    # By name: once layers are stacked, a norm's scale has two axes as well.
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key != "scale", params)


def batch_of(step: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng([7, step])
    rows = random.integers(0, VOCAB, (BATCH, LENGTH + 1)).astype(np.int32)
    return {"tokens": rows[:, :-1], "targets": rows[:, 1:]}


class _Tokens(Data):
    vocabulary = VOCAB

    def batch(self, step: int) -> dict[str, np.ndarray]:
        return batch_of(step)


@plugin
class Tokens:
    """`[data]`: the batches of the old trainer."""

    batch_size: int = BATCH

    @hookimpl
    def build_data(self) -> Data:
        return _Tokens()


def begin(tx: optax.GradientTransformation, fused: bool = False) -> TrainState:
    model = OldDecoder(fused)
    params = first_values(model)["params"]
    return TrainState.create(apply_fn=model.apply, params=params, tx=tx)


def first_values(model: nn.Module, **arguments: Any) -> Any:
    """Return what `model.init` does, with other values: there is nothing to compile."""
    random = np.random.default_rng(1)

    def values(leaf: Any) -> jax.Array:
        spread = random.uniform(0, 0.4, leaf.shape) - 0.2 * (leaf.ndim > 1)
        return jnp.asarray(spread + (leaf.ndim == 1), leaf.dtype)

    key, tokens = jax.random.key(0), batch_of(0)["tokens"]
    return jax.tree.map(values, jax.eval_shape(lambda: model.init(key, tokens, **arguments)))


def losses(state: TrainState, steps: int) -> Iterator[tuple[TrainState, float]]:
    """Train; give the state after each step, and its loss."""
    for _ in range(steps):
        state, loss = _step(state, batch_of(int(state.step)))
        yield state, float(loss)


def write(path: Path, tree: Any) -> Path:
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(path, tree)
    return path


@jax.jit
def _step(state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, jax.Array]:
    def loss(params: Any) -> jax.Array:
        logits = state.apply_fn({"params": params}, batch["tokens"])
        targets = batch["targets"]
        # As the core's: a comparison instead of a gather, so that gradients add up alike.
        is_target = targets[..., None] == jnp.arange(VOCAB)
        chosen = jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1)
        return jnp.sum(jax.nn.logsumexp(logits, axis=-1) - chosen) / targets.size

    value, grads = jax.value_and_grad(loss)(state.params)
    return state.apply_gradients(grads=grads), value
