"""Predicts each token from the one before it, through a layer of its own."""

from __future__ import annotations

from typing import Any

from trainer_core import hookimpl, plugin, setting


@plugin
class Example:
    vocab: int = setting(256, "how many different tokens there are", unit="tokens")
    width: int = setting(64, "of the hidden layer", unit="channels")

    @hookimpl
    def build_state(self, run: Any) -> Any:
        import jax
        import jax.numpy as jnp

        from trainer_core import Axis, Model, ParamInfo, token_cross_entropy

        # What optimizers, sharding and `trainer explain` know of each parameter.
        float32 = jnp.dtype("float32")
        embedding = ParamInfo(
            path="embed/embedding",
            shape=(self.vocab, self.width),
            dtype=float32,
            axes=(Axis("vocab", "in"), Axis("embed", "out")),
            kind="embedding",
        )
        kernel = ParamInfo(
            path="out/kernel",
            shape=(self.width, self.vocab),
            dtype=float32,
            axes=(Axis("embed", "in"), Axis("vocab", "out")),
            kind="unembedding",
        )

        def init(key: Any) -> Any:
            first, second = jax.random.split(key)
            params = {
                "embed": {"embedding": jax.random.normal(first, embedding.shape)},
                "out": {"kernel": jax.random.normal(second, kernel.shape) / self.width},
            }
            return params, {}  # no buffers

        def logits(params: Any, buffers: Any, batch: Any) -> Any:
            x = params["embed"]["embedding"][batch["tokens"]]  # [batch, length, width]
            x = run.axes.constrain(x, ("batch", "length", "embed"))
            return jnp.tanh(x) @ params["out"]["kernel"]  # [batch, length, vocab]

        def terms(params: Any, buffers: Any, batch: Any, key: Any, train: bool) -> Any:
            scores = logits(params, buffers, batch)
            # A sum and a weight, never a mean: the core divides once, over the global batch.
            term = token_cross_entropy(scores, batch["targets"], batch["weights"])
            return {"cross_entropy": term}, buffers

        return Model(
            init=init,
            terms=terms,
            params={"embed": {"embedding": embedding}, "out": {"kernel": kernel}},
            logits=logits,
            vocabulary=self.vocab,
        )
