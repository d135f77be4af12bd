"""Checks that need eight devices: here where there are so many, else in a process of their own.

A check takes a recipe whose mesh has eight devices, and returns what it finds as JSON values.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from trainer_core.errors import RunError, TrainerError
from trainer_core.threads import threads_for

_FLAG = "--xla_force_host_platform_device_count=8"


def on_eight_devices(check: Callable[[dict[str, Any]], Any], recipe: str) -> Any:
    """Return what `check(recipe)` returns on eight devices, simulated where need be.

    Args:
        check: a function of a module, which the other process imports.
        recipe: as JSON.

    Raises:
        RunError: the process with eight devices failed; with what it printed.
    """
    found = _found(f"{check.__module__}:{check.__qualname__}", recipe)
    if isinstance(found, TrainerError):
        raise found
    return found


@functools.lru_cache(maxsize=64)
def _found(check: str, recipe: str) -> Any:
    import jax

    if jax.device_count() >= 8:
        return call(check, recipe)
    done = subprocess.run(
        [sys.executable, "-m", "trainer_core.testing", check],
        input=recipe,
        env=eight_devices(),
        capture_output=True,
        text=True,
        timeout=600,
    )
    if done.returncode:
        return RunError(f"on eight devices: {done.stdout}{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def eight_devices() -> dict[str, str]:
    """Return the environment of a process with eight simulated devices, which imports as this."""
    return {
        **os.environ,
        **threads_for(8),
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "8",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {_FLAG}",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }


def call(check: str, recipe: str) -> Any:
    module, _, name = check.partition(":")
    return getattr(importlib.import_module(module), name)(json.loads(recipe))


# ---------------------------------------------------------------------------- checks


def three_steps(recipe: dict[str, Any]) -> dict[str, Any]:
    """Train three steps on a mesh and on one device.

    Returns:
        `different`: the parameters whose first values are not the same to the bit;
        `whole`: the optimizer's arrays that every device holds whole, though the parameters are
        spread: with their shapes;
        `apart`: how far the last parameters are apart, as a part of the way that they went.
    """
    from trainer_core.testing.parts import different_leaves, host

    states, wholes = [], []
    for parts in _on_a_mesh_and_alone(recipe):
        state = parts.state()
        first = host(state.params)
        wholes.append(_whole((state.opt_state, state.extra)))
        for step in range(3):
            state, _ = parts.step(state, parts.batch(step))
        states.append((first, host(state.params)))
    (first, last), (first_alone, last_alone) = states
    return {
        "different": different_leaves(first, first_alone),
        "whole": wholes[0],
        "apart": apart(last, last_alone, first),
    }


def first_gradient(recipe: dict[str, Any]) -> dict[str, Any]:
    """Take the gradient of the first batch on a mesh and on one device.

    Returns:
        `different`: the parameters whose first values are not the same to the bit;
        `apart`: how far the gradients and the losses are apart, as a part of their size.
    """
    import jax
    import numpy as np

    from trainer_core.testing.parts import different_leaves, host

    firsts, gradients = [], []
    for parts in _on_a_mesh_and_alone(recipe):
        state = parts.state()
        firsts.append(host(state.params))
        found = parts.gradient(state.params, state.buffers, parts.batch(0))
        gradients.append(host((found.loss, found.grads)))
    apart_by_part = [
        apart(found, alone, jax.tree.map(np.zeros_like, alone))
        for found, alone in zip(*gradients, strict=True)
    ]
    return {
        "different": different_leaves(*firsts),
        "apart": float(np.max(apart_by_part)),  # NaN stays NaN
    }


def _on_a_mesh_and_alone(recipe: dict[str, Any]) -> Any:
    import jax

    from trainer_core.testing.parts import build

    yield build(recipe, devices=jax.devices()[:8])
    alone = {**recipe, "shard": {**recipe["shard"], "mesh": {"data": 1}}}
    yield build(alone, devices=jax.devices()[:1])


def apart(found: Any, expected: Any, start: Any) -> float:
    """Return the largest difference of two trees, as a part of the way from `start`."""
    import jax
    import numpy as np

    def largest(a: Any, b: Any) -> float:
        differences = jax.tree.map(
            lambda x, y: float(np.max(np.abs(np.float64(x) - np.float64(y)), initial=0)), a, b
        )
        return float(np.max(jax.tree.leaves(differences), initial=0))  # NaN stays NaN

    return largest(found, expected) / max(largest(expected, start), 1e-30)


def _whole(tree: Any) -> list[str]:
    import jax

    return [
        f"{jax.tree_util.keystr(path, simple=True, separator='/')} {list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if leaf.size >= 64 and leaf.sharding.is_fully_replicated
    ]
