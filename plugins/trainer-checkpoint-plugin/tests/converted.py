"""Both sides of a conversion without a model: trees written by Orbax, and the state of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from trainer_checkpoint import stored, tree
from trainer_checkpoint.convert.described import described_checkpoint
from trainer_checkpoint.convert.mapping import load_mapping
from trainer_checkpoint.convert.plan import Plan, Spec
from trainer_checkpoint.convert.planning import Described, make_plan
from trainer_checkpoint.convert.sides import side_of_run

from trainer_core.types import TrainState

SGD = optax.sgd(0.1, momentum=0.9)


def numbers(*shape: int, seed: int = 0, dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(dtype)


def run_of(
    params: Any,
    tx: optax.GradientTransformation = SGD,
    buffers: Any = None,
    stacks: Mapping[str, int] | None = None,
) -> Described:
    """A run with these parameters; `stacks`: name to the axis of layers."""
    key = jax.random.key(0)
    state = TrainState(jnp.int32(0), params, buffers or {}, tx.init(params), key, {})
    leaves = tree.by_path(jax.eval_shape(lambda: state))
    words = jax.eval_shape(jax.random.key_data, key)
    specs = {
        "/".join(path): Spec(leaf.shape, str(leaf.dtype))
        for path, leaf in (leaves | {("key",): words}).items()
    }
    side = side_of_run(specs)
    axes = {name: (stacks or {}).get(name) for name in side.model}
    return Described("the run", specs, side, axes)


def saved(folder: Path, tree: Any) -> Path:
    """Write a tree with Orbax, as other code does."""
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(folder, tree)
    return folder


def planned(path: Path, run: Described, mapping: str = "", fresh: bool = False) -> Plan:
    """Plan the conversion of a checkpoint into a run."""
    file = path.parent / "mapping.toml"
    file.write_text(mapping)
    rules = load_mapping(file)
    source = described_checkpoint(stored.look(path), rules.prefix, run.axes)
    return make_plan(source, run, rules, fresh)


def there_and_back(path: Path, run: Described, mapping: str = "") -> dict[str, np.ndarray]:
    """Return the run's arrays, after a look that the way back gives the same bits."""
    plan = planned(path, run, mapping)
    before = stored.read(stored.look(path))
    made = plan.carry_out(before)
    for name, array in made.items():
        assert Spec(array.shape, str(array.dtype)) == run.specs[name]
    after = plan.inverse().carry_out(made)
    kept = {name: array for name, array in before.items() if name not in plan.dropped}
    assert after.keys() == kept.keys()
    for name, array in kept.items():
        assert after[name].dtype == array.dtype
        assert after[name].tobytes() == array.tobytes(), name
    return made
