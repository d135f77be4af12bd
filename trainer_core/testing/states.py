"""States to save and restore, here and in processes that are killed or have eight devices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from trainer_core.assemble import open_run
from trainer_core.config import load_config
from trainer_core.hooks import Hooks
from trainer_core.run import Run
from trainer_core.testing.parts import different_leaves
from trainer_core.types import Data, TrainState

DTYPES = (
    "bool",
    "int8",
    "uint8",
    "int16",
    "int32",
    "uint32",
    "float16",
    "bfloat16",
    "float32",
    "float8_e4m3fn",
)


def state_at(step: int) -> TrainState:
    """Return a state that is another at every step: each dtype, typed keys, scalars, nothing."""
    random = np.random.default_rng(step)
    kernel = random.normal(size=(64, 32)).astype(np.float32)
    words = random.integers(0, 2**31, (16, 8))
    params = {
        "layer": {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(kernel[0], jnp.bfloat16)},
        "with.dot": jnp.asarray(kernel[:8]),
    }
    return TrainState(
        step=jnp.int32(step),
        params=params,
        buffers={
            "dtypes": {name: jnp.asarray(words % 100).astype(name) for name in DTYPES},
            "odd": jnp.asarray([-0.0, np.inf, 1e-42, np.pi], jnp.float32),
            "scalar": jnp.float32(step / 3),
        },
        opt_state=(
            {"momentum": jax.tree.map(lambda leaf: leaf / 2, params), "count": jnp.int32(step)},
            (),
        ),
        key=jax.random.key(step),
        extra={
            "keys": jax.random.split(jax.random.key(step), 3),
            # Of the step of the core, whose hooks see the state too.
            "gradient": dict.fromkeys(
                ("skipped", "skipped_in_a_row", "first_nonfinite"), jnp.int32(0)
            ),
        },
    )


def placed(state: TrainState, mesh: Any) -> TrainState:
    """Return a state on a mesh; None: on one device."""
    places = jax.tree.map(lambda leaf: leaf.sharding, like(state, mesh))
    there: TrainState = jax.tree.map(
        lambda leaf, place: jnp.copy(jax.device_put(leaf, place)), state, places
    )
    return there


def like(state: TrainState, mesh: Any) -> TrainState:
    """Return the shapes, dtypes and shardings of a state on a mesh."""
    mesh = _mesh(1, 1) if mesh is None else mesh

    def abstract(leaf: Any) -> jax.ShapeDtypeStruct:
        spread = leaf.ndim == 2 and not leaf.shape[0] % 4 and not leaf.shape[1] % 2
        spec = PartitionSpec("fsdp", "tensor") if spread else PartitionSpec()
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    wanted: TrainState = jax.tree.map(abstract, state)
    return wanted


@contextmanager
def saving(run: Run, hooks: Hooks, data: Data | None = None) -> Iterator[Callable[..., None]]:
    """Return `save(state)` of a run that begins now, and is closed at the end of the block."""

    def save(state: TrainState) -> None:
        hooks.save(run=run, step=int(state.step), state=state, data=data or Data())

    try:
        yield save
    except BaseException as error:
        hooks.close(run=run, error=error)
        raise
    hooks.close(run=run, error=None)


def read(run: Run, hooks: Hooks, wanted: TrainState, data: Data | None = None) -> TrainState | None:
    """Return what a run that begins now restores."""
    try:
        return hooks.restore(run=run, like=wanted, data=data or Data())
    finally:
        hooks.close(run=run, error=None)


# ---------------------------------------------------------------------------- other processes


def saved_without_end(recipe: dict[str, Any]) -> None:
    """Save one state after the other, on from where it was left, until this process is killed."""
    run, hooks = _opened(recipe)
    found = read(*_opened(recipe), like(state_at(1), None))
    step = 0 if found is None else int(found.step)
    with saving(run, hooks) as save:
        while True:
            step += 1
            save(placed(state_at(step), None))
            print(step, flush=True)


def saved_on_eight(recipe: dict[str, Any]) -> None:
    with saving(*_opened(recipe)) as save:
        save(placed(state_at(1), _mesh_of_eight()))


def restored_on_eight(recipe: dict[str, Any]) -> list[str]:
    """Return the paths of what does not come back as it was saved, or not where it was asked."""
    wanted = like(state_at(1), _mesh_of_eight())
    found = read(*_opened(recipe), wanted)
    if found is None:
        return ["all of it: restore returned None"]
    elsewhere = [
        jax.tree_util.keystr(path, simple=True, separator="/") + " (its sharding)"
        for (path, leaf), asked in zip(
            jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(wanted), strict=True
        )
        if not leaf.sharding.is_equivalent_to(asked.sharding, leaf.ndim)
    ]
    return different_leaves(found, state_at(1)) + elsewhere


def _opened(recipe: dict[str, Any]) -> tuple[Run, Hooks]:
    return open_run(load_config(recipe))


def _mesh_of_eight() -> Any:
    return _mesh(4, 2)


def _mesh(fsdp: int, tensor: int) -> Any:
    return jax.make_mesh((fsdp, tensor), ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)
