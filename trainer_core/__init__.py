"""A trainer for JAX: a small loop that emits hooks, and plugins that do the rest.

Importing this imports no jax, so that help, tables and config errors are instant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trainer_core.errors import RunError, SettingError, TrainerError, UserError
from trainer_core.plugin import hookimpl, plugin, setting

if TYPE_CHECKING:
    from trainer_core.defaults.accumulate import build_grad
    from trainer_core.defaults.step import build_step
    from trainer_core.loop import Result, fit
    from trainer_core.loss import build_loss
    from trainer_core.losses import cross_entropy, token_cross_entropy
    from trainer_core.run import Run
    from trainer_core.types import (
        Axis,
        Data,
        Gradient,
        Model,
        ParamInfo,
        Shardings,
        Step,
        Term,
        TrainState,
    )

_WHERE = {
    "build_grad": "defaults.accumulate",
    "build_loss": "loss",
    "build_step": "defaults.step",
    "Result": "loop",
    "fit": "loop",
    "Run": "run",
    "cross_entropy": "losses",
    "token_cross_entropy": "losses",
} | dict.fromkeys(
    (
        "Axis",
        "Data",
        "Gradient",
        "Model",
        "ParamInfo",
        "Shardings",
        "Step",
        "Term",
        "TrainState",
    ),
    "types",
)

__all__ = [
    "Axis",
    "Data",
    "Gradient",
    "Model",
    "ParamInfo",
    "Result",
    "Run",
    "RunError",
    "SettingError",
    "Shardings",
    "Step",
    "Term",
    "TrainState",
    "TrainerError",
    "UserError",
    "build_grad",
    "build_loss",
    "build_step",
    "cross_entropy",
    "fit",
    "hookimpl",
    "plugin",
    "setting",
    "token_cross_entropy",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"trainer_core.{_WHERE[name]}"), name)
