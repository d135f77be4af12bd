"""What the optimizer keeps: slots go with their parameters, counters by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from converted import numbers, planned, run_of, saved, there_and_back

from trainer_core.errors import UserError

LAYERS = [{"w": numbers(6, 5, seed=n), "b": numbers(5, seed=n)} for n in range(3)]
UNROLLED = {f"layers_{n}": layer for n, layer in enumerate(LAYERS)}
STACKED = {"layers": jax.tree.map(lambda *layers: np.stack(layers), *LAYERS)}
STACKS = {"layers/w": 0, "layers/b": 0}


def schedule(count: Any) -> Any:
    return 0.1 / (1 + count)


def is_matrix(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "w", params)


def labels(params: Any) -> Any:
    return jax.tree.map(lambda matrix: "m" if matrix else "v", is_matrix(params))


OPTIMIZERS = {
    "adamw": optax.adamw(schedule),
    "masked decay": optax.chain(optax.clip(1.0), optax.adamw(0.1, mask=is_matrix)),
    "momentum": optax.sgd(schedule, momentum=0.9),
    "lion": optax.lion(0.1),
    "adafactor": optax.adafactor(0.1, min_dim_size_to_factor=4),
    "partitioned": optax.multi_transform(
        {"m": optax.adam(0.1), "v": optax.sgd(0.1, momentum=0.9)}, labels
    ),
    "frozen": optax.masked(optax.adam(0.1), is_matrix),
    "hyperparameters": optax.inject_hyperparams(optax.adamw)(learning_rate=schedule),
    "two moments": optax.chain(optax.trace(0.9), optax.scale_by_adam(), optax.trace(0.5)),
}


def trained(params: Any, tx: optax.GradientTransformation, steps: int = 2) -> Any:
    """The optimizer's state after some steps; it differs in every array."""
    params = jax.tree.map(jnp.asarray, params)
    state = tx.init(params)
    for _ in range(steps):
        updates, state = tx.update(jax.tree.map(jnp.sin, params), state, params)
        params = optax.apply_updates(params, updates)
    return state


def old(folder: Path, params: Any, state: Any) -> Path:
    return saved(folder / "old", {"params": params, "opt_state": state, "step": 2})


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_state_goes_with_the_stacked_parameters(name: str, tmp_path: Path) -> None:
    tx = OPTIMIZERS[name]
    path = old(tmp_path, UNROLLED, trained(UNROLLED, tx))
    made = there_and_back(path, run_of(STACKED, tx, stacks=STACKS))
    for slot in ("mu", "nu", "trace", "v"):
        of_slot = {path: array for path, array in made.items() if f"/{slot}/" in path}
        assert all(np.any(array) for array in of_slot.values() if array.shape != (1,))


def test_a_chain_of_another_shape_gives_the_same_state(tmp_path: Path) -> None:
    clipped = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1))
    state = trained(UNROLLED, clipped)
    made = there_and_back(
        old(tmp_path, UNROLLED, state), run_of(STACKED, optax.adamw(schedule), stacks=STACKS)
    )
    mu = state[1][0].mu
    assert np.array_equal(
        made["opt_state/0/mu/layers/w"], np.stack([mu[f"layers_{n}"]["w"] for n in range(3)])
    )
    # One counter becomes two: Adam's, and that of the schedule.
    assert made["opt_state/0/count"] == made["opt_state/2/count"] == 2


@pytest.mark.parametrize("keys", ["params", "state", "params of a model"])
def test_the_state_is_found_under_other_keys(keys: str, tmp_path: Path) -> None:
    tx = OPTIMIZERS["adamw"]
    inner = {"params": UNROLLED} if keys == "params" else UNROLLED
    inner = {"model": UNROLLED} if keys == "params of a model" else inner
    tree = {"params": inner, "opt_state": trained(inner, tx), "step": 2}
    tree = {"state": tree} if keys == "state" else tree
    prefix = 'prefix = "params/model"' if keys == "params of a model" else ""
    made = there_and_back(saved(tmp_path / "old", tree), run_of(STACKED, tx, stacks=STACKS), prefix)
    assert np.any(made["opt_state/0/nu/layers/b"])
    assert made["step"] == 2


def test_a_whole_slot_becomes_one_in_pieces(tmp_path: Path) -> None:
    pieces = optax.multi_transform({"m": optax.adam(0.1), "v": optax.adam(0.2)}, labels)
    state = trained(UNROLLED, optax.adam(0.1))
    made = there_and_back(old(tmp_path, UNROLLED, state), run_of(STACKED, pieces, stacks=STACKS))
    biases = "opt_state/inner_states/v/inner_state/0/mu/layers/b"
    assert np.array_equal(made[biases][1], state[0].mu["layers_1"]["b"])


def test_counters_that_differ_are_not_made_one(tmp_path: Path) -> None:
    tx = OPTIMIZERS["adamw"]
    adam, decay, scale = trained(UNROLLED, tx)
    path = old(tmp_path, UNROLLED, (adam, decay, scale._replace(count=jnp.int32(9))))
    plan = planned(path, run_of(STACKED, optax.adam(0.1), stacks=STACKS))
    from trainer_checkpoint import stored

    with pytest.raises(UserError, match=r"opt_state/2/count cannot become .*they differ: 2, 9"):
        plan.carry_out(stored.read(stored.look(path)))


def test_another_optimizer_is_an_error_that_names_the_slots(tmp_path: Path) -> None:
    path = old(tmp_path, UNROLLED, trained(UNROLLED, optax.adam(0.1)))
    run = run_of(STACKED, optax.sgd(0.1, momentum=0.9), stacks=STACKS)
    with pytest.raises(UserError) as error:
        planned(path, run)
    message = str(error.value)
    assert "missing: 2 " in message
    assert "opt_state/0/trace/layers/w float32[3, 6, 5]" in message
    assert "unexpected: 13 " in message
    assert "it has mu, nu, count, and the run needs trace. --fresh-optimizer" in message


def test_a_fresh_optimizer_is_an_explicit_choice(tmp_path: Path) -> None:
    path = old(tmp_path, UNROLLED, trained(UNROLLED, optax.adam(0.1)))
    plan = planned(path, run_of(STACKED, stacks=STACKS), fresh=True)
    assert len(plan.ignored) == 13
    assert set(plan.fresh) == {"opt_state/0/trace/layers/w", "opt_state/0/trace/layers/b", "key"}
