"""The step of a decoder as one writes it by hand: plain JAX, its own constraints, one `jit`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from trainer_core.assemble import open_run
from trainer_core.config import load_config
from trainer_core.program import Program, build_program

SIZES = ["model.layers=4", "model.width=128", "model.heads=4", "model.kv_heads=2"]
SIZES += ["model.head_dim=32", "model.mlp=384", "data.length=64", "data.batch_size=32"]
EPSILON, THETA = 1e-5, 10_000.0


class ByHand:
    """The decoder's step in plain JAX, for the parameters of a program."""

    def __init__(self, program: Program) -> None:
        self.program, self.mesh = program, program.run.mesh
        self.optimizer = optax.chain(
            optax.clip_by_global_norm(1.0),
            optax.adamw(
                program.schedule,
                b2=0.95,
                weight_decay=0.1,
                mask=jax.tree.map(lambda info: info.kind != "norm", program.model.params),
            ),
        )
        shardings = program.shardings
        lies = {tuple(map(str, path)): leaf for path, leaf in _paths(shardings.state.params)}
        made = jax.eval_shape(self.optimizer.init, program.abstract_state.params)

        def like(path: Any, leaf: Any) -> Any:
            names = tuple(map(str, path))
            ends = (names[start:] for start in range(len(names)))
            return next((lies[end] for end in ends if end in lies), shardings.replicated)

        opt_state = jax.tree_util.tree_map_with_path(like, made)
        self.lies = (shardings.state.params, opt_state, shardings.replicated)
        self.initial = jax.jit(
            lambda params: (params, self.optimizer.init(params), jnp.zeros((), jnp.int32)),
            out_shardings=self.lies,
        )
        self.jitted = jax.jit(
            self.step,
            donate_argnums=0,
            in_shardings=(self.lies, shardings.batch),
            out_shardings=(self.lies, shardings.replicated),
        )

    def step(self, state: Any, batch: Any) -> Any:
        params, opt_state, count = state
        loss, grads = jax.value_and_grad(self.loss)(params, batch)
        norm = optax.tree.norm(grads)
        updates, opt_state = self.optimizer.update(grads, opt_state, params)
        metrics = {"loss": loss, "grad_norm": norm, "rate": self.program.schedule(count)}
        return (optax.apply_updates(params, updates), opt_state, count + 1), metrics

    def loss(self, params: Any, batch: Any) -> jax.Array:
        table = self.put(params["embed"]["embedding"], ("tensor",), None)
        x = self.put(table[batch["tokens"]], ("data", "fsdp"), None, None)
        x, _ = jax.lax.scan(lambda x, layer: (self.block(x, layer), None), x, params["layers"])
        x = norm(x, params["final_norm"]["scale"])
        logits = jnp.einsum("ble,ve->blv", x, params["embed"]["embedding"])
        logits = self.put(logits, ("data", "fsdp"), None, ("tensor",))
        targets = jax.nn.one_hot(batch["targets"], logits.shape[-1])
        losses = jax.nn.logsumexp(logits, axis=-1) - jnp.sum(targets * logits, axis=-1)
        return jnp.sum(losses * batch["weights"]) / jnp.sum(batch["weights"])

    def block(self, x: jax.Array, layer: Any) -> jax.Array:
        attention = layer["attention"]
        weights = {name: each["kernel"] for name, each in attention.items() if "kernel" in each}
        y = norm(x, layer["attention_norm"]["scale"])
        query, key, value = (
            jnp.einsum("ble,ehd->blhd", y, weights[name]) for name in ("query", "key", "value")
        )
        query = turned(norm(query, attention["query_norm"]["scale"]))
        key = turned(norm(key, attention["key_norm"]["scale"]))
        heads = (("data", "fsdp"), None, ("tensor",), None)
        query, key, value = (self.put(each, *heads) for each in (query, key, value))
        read = jax.nn.dot_product_attention(query, key, value, is_causal=True)
        x = x + jnp.einsum("blhd,hde->ble", read, weights["out"])
        y = norm(x, layer["mlp_norm"]["scale"])
        mlp = {name: each["kernel"] for name, each in layer["mlp"].items()}
        hidden = jax.nn.silu(y @ mlp["gate"]) * (y @ mlp["up"])
        hidden = self.put(hidden, ("data", "fsdp"), None, ("tensor",))
        return self.put(x + hidden @ mlp["down"], ("data", "fsdp"), None, None)

    def put(self, x: jax.Array, *axes: Any) -> jax.Array:
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, PartitionSpec(*axes)))


def norm(x: jax.Array, scale: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + EPSILON) * scale


def turned(x: jax.Array) -> jax.Array:
    half = x.shape[-1] // 2
    angles = jnp.arange(x.shape[1])[:, None, None] * THETA ** (-jnp.arange(half) / half)
    a, b = x[..., :half], x[..., half:]
    sine, cosine = jnp.sin(angles), jnp.cos(angles)
    return jnp.concatenate([a * cosine - b * sine, b * cosine + a * sine], axis=-1)


def _paths(tree: Any) -> Any:
    return jax.tree_util.tree_leaves_with_path(tree)


def program_on(mesh: str) -> Program:
    config = load_config(None, [f"shard.mesh={mesh}", "checkpoint.use=none", *SIZES])
    run, hooks = open_run(config)
    return build_program(run, hooks)
