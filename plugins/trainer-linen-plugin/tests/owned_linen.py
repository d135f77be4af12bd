"""A module of one's own, as `[model] module` names it, with dropout and running statistics."""

from __future__ import annotations

from typing import Any

from flax import linen as nn

from trainer_core import token_cross_entropy
from trainer_core.types import Term


class Normalised(nn.Module):
    @nn.compact
    def __call__(self, tokens: Any, train: bool) -> Any:
        x = nn.Embed(64, 8)(tokens)
        x = nn.BatchNorm(use_running_average=not train)(x)
        x = nn.Dropout(0.1, deterministic=not train)(x)
        return nn.Dense(64)(x)

    def terms(self, batch: Any, train: bool) -> dict[str, Term]:
        scores = self(batch["tokens"], train)
        return {"loss": token_cross_entropy(scores, batch["targets"], batch["weights"])}
