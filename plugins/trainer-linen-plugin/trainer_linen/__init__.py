"""Flax Linen models for trainer-core: a decoder language model, and any `nn.Module` of your own."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer_linen.boxes import with_info
    from trainer_linen.decoder import Decoder, decoder_model
    from trainer_linen.module import as_model

__all__ = ["Decoder", "as_model", "decoder_model", "with_info"]

_HOMES = {
    "Decoder": "decoder",
    "as_model": "module",
    "decoder_model": "decoder",
    "with_info": "boxes",
}


def __getattr__(name: str) -> Any:
    # The settings live in this package too, and are read before jax and flax are loaded.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
