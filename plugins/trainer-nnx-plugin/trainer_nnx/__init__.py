"""Flax NNX models for trainer-core: a decoder language model, and any `nnx.Module` of your own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer_nnx.decoder import Decoder, decoder_model
    from trainer_nnx.module import as_model

__all__ = ["Decoder", "as_model", "decoder_model"]


def __getattr__(name: str) -> Any:
    # The settings live in this package too, and are read before jax and flax are loaded.
    if name in ("Decoder", "decoder_model"):
        from trainer_nnx import decoder

        return getattr(decoder, name)
    if name == "as_model":
        from trainer_nnx.module import as_model

        return as_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
