"""The Muon optimizer, for trainer-core and for your own JAX code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer_muon.infos import Description, describe, placement_of
    from trainer_muon.newton_schulz import orthogonalize
    from trainer_muon.own import muon

__all__ = ["Description", "describe", "muon", "orthogonalize", "placement_of"]

_HOMES = {
    "Description": "infos",
    "describe": "infos",
    "muon": "own",
    "orthogonalize": "newton_schulz",
    "placement_of": "infos",
}


def __getattr__(name: str) -> Any:
    """Import at first use: the settings are read without jax."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"trainer_muon.{_HOMES[name]}"), name)
