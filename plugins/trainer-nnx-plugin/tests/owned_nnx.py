"""A module of one's own, as `[model] module` names it, with dropout and running statistics."""

from __future__ import annotations

from typing import Any

from flax import nnx

from trainer_core import token_cross_entropy
from trainer_core.types import Term


class Normalised(nnx.Module):
    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Embed(64, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.out = nnx.Linear(8, 64, rngs=rngs)

    def logits(self, batch: Any) -> Any:
        return self.out(self.dropout(self.norm(self.embed(batch["tokens"]))))

    def terms(self, batch: Any) -> dict[str, Term]:
        scores = self.logits(batch)
        return {"loss": token_cross_entropy(scores, batch["targets"], batch["weights"])}
