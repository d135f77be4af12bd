"""Runs and states to save and restore, for the tests and for the processes that they start."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from trainer_checkpoint.plugin import Orbax

from trainer_core.run import Run, RunSettings
from trainer_core.types import Data, TrainState

CONFIG = {"run": {"seed": 3, "name": "tests"}, "checkpoint": {"every": 10}}


def run_in(directory: Path, devices: int = 1) -> Run:
    mesh = jax.make_mesh(
        (devices,), ("fsdp",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices]
    )
    return Run(config=CONFIG, settings=RunSettings(), directory=directory, mesh=mesh, axes=None)


def state_at(step: int, mesh: Any, tx: optax.GradientTransformation | None = None) -> TrainState:
    """A state that differs at every step, sharded over the mesh where its shapes allow it.

    Its arrays are large enough that they do not stand inside the index of the files.
    """
    normal = jax.random.normal(jax.random.key(step), (128, 8))
    params = {
        "layers": {"kernel": normal, "scale": normal[0].astype(jnp.bfloat16)},
        "embed.ding": {"embedding": normal * 2},
    }
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1)) if tx is None else tx
    state = TrainState(
        step=jnp.int32(step),
        params=params,
        buffers={"mean": normal[:, 0], "count": jnp.int32(7)},
        opt_state=tx.init(params),
        key=jax.random.key(step),
        extra={"ema": {"layers": normal / 3}},
    )
    return jax.device_put(state, jax.tree.map(lambda leaf: _sharding(leaf, mesh), state))


def like(state: TrainState, mesh: Any) -> TrainState:
    """What the core hands to `restore` for such a state."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=_sharding(leaf, mesh)),
        state,
    )


def save(run: Run, *states: TrainState, data: Data | None = None, **settings: Any) -> None:
    with saving(run, **settings) as plugin:
        for state in states:
            plugin.save(run, int(state.step), state, data or Data())


@contextmanager
def saving(run: Run, **settings: Any) -> Iterator[Orbax]:
    """The plugin of a run that starts now, and closes at the end of the block."""
    plugin = Orbax(**settings)
    try:
        yield plugin
    except BaseException as error:
        plugin.close(run, error)
        raise
    plugin.close(run, None)


def restore(run: Run, wanted: TrainState, data: Data | None = None) -> TrainState | None:
    return Orbax().restore(run, wanted, data or Data())


def bits(state: TrainState) -> list[tuple[Any, ...]]:
    """All that a state is, comparable: structure, and each leaf's dtype, shape and bytes."""
    leaves = []
    for leaf in jax.tree.leaves(state):
        dtype = str(leaf.dtype)
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        leaves.append((dtype, leaf.shape, np.asarray(leaf).tobytes()))
    return [jax.tree.structure(state), *leaves]


def folder(run: Run, step: int) -> Path:
    return run.directory / "checkpoints" / str(step)


def files(directory: Path) -> dict[str, bytes]:
    """Every file under a folder, and what is in it."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def python(code: str, *arguments: Any, devices: int = 1) -> subprocess.Popen[str]:
    """Start another Python that can import this module."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent), "XLA_FLAGS": flags},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _sharding(leaf: Any, mesh: Any) -> NamedSharding:
    divides = leaf.ndim > 0 and leaf.shape[0] > 0 and leaf.shape[0] % mesh.size == 0
    return NamedSharding(mesh, PartitionSpec("fsdp") if divides else PartitionSpec())
