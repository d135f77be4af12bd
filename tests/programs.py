"""Recipes for the small models; what makes runs of them is the package's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainer_core.testing.parts import Parts, assert_bitwise_equal, build, host

__all__ = ["Parts", "assert_bitwise_equal", "build", "host", "recipe"]


def recipe(**tables: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config for the perceptron; `tables` add to these keys."""
    made: dict[str, Any] = {
        "run": {"steps": 4, "eval_every": 0},
        "model": {"use": "models:Perceptron"},
        "data": {"use": "models:Examples"},
        "schedule": {"use": "constant", "learning_rate": 0.1, "warmup": 0},
        "checkpoint": {"use": "none"},
        "plugins": {"progress": False},
    }
    for name, table in tables.items():
        made[name] = {**made.get(name, {}), **table}
    return made
