"""The decoder against the same formulas written again, in NumPy and float64.

The gradient is compared along random directions, for each array apart: a wrong value anywhere in
the gradient of an array shows in every direction.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

# Float32 carries 6e-8, and two layers of sums multiply it; errors of 3e-7 to 7e-7 were found in
# the gradient.
LOGITS_BOUND = 2e-6
GRADIENT_BOUND = 2e-6

VARIANTS = {
    "tied, scanned": {},
    "untied, normed heads, unrolled": {"tied": False, "qk_norm": True, "scan": False},
}


def reference_logits(config: Any, params: Any, row: dict[str, np.ndarray]) -> np.ndarray:
    """One row [length] of tokens to its logits [length, vocab]."""
    length = len(row["tokens"])
    positions = row.get("positions", np.arange(length))
    segments = row.get("segments", np.zeros(length, int))
    readable = np.tril(segments[:, None] == segments[None, :])

    def norm(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.norm_epsilon) * scale

    def turn(x: np.ndarray) -> np.ndarray:  # [length, head_dim], as complex numbers
        half = config.head_dim // 2
        rates = config.rope_theta ** (-2 * np.arange(half) / config.head_dim)
        turned = (x[:, :half] + 1j * x[:, half:]) * np.exp(1j * positions[:, None] * rates)
        return np.concatenate([turned.real, turned.imag], axis=1)

    def head(x: np.ndarray, weights: Any, index: int) -> np.ndarray:
        shared = index // (config.heads // config.kv_heads)
        query = x @ weights["query"]["kernel"][:, index]
        key = x @ weights["key"]["kernel"][:, shared]
        value = x @ weights["value"]["kernel"][:, shared]
        if config.qk_norm:
            query = norm(query, weights["query_norm"]["scale"])
            key = norm(key, weights["key_norm"]["scale"])
        scores = turn(query) @ turn(key).T / np.sqrt(config.head_dim)
        scores = np.exp(np.where(readable, scores, -np.inf))
        read = scores / scores.sum(1, keepdims=True) @ value
        return read @ weights["out"]["kernel"][index]

    x = params["embed"]["embedding"][row["tokens"]]
    for layer in range(config.layers):
        if config.scan:
            weights = jax.tree.map(lambda array, layer=layer: array[layer], params["layers"])
        else:
            weights = params["layers"][str(layer)]
        y = norm(x, weights["attention_norm"]["scale"])
        x = x + sum(head(y, weights["attention"], index) for index in range(config.heads))
        y = norm(x, weights["mlp_norm"]["scale"])
        gate = y @ weights["mlp"]["gate"]["kernel"]
        hidden = gate / (1 + np.exp(-gate)) * (y @ weights["mlp"]["up"]["kernel"])
        x = x + hidden @ weights["mlp"]["down"]["kernel"]
    x = norm(x, params["final_norm"]["scale"])
    return x @ (params["embed"]["embedding"].T if config.tied else params["unembed"]["kernel"])


def reference_loss(config: Any, params: Any, batch: dict[str, np.ndarray]) -> float:
    total = 0.0
    for index in range(len(batch["tokens"])):
        row = {name: array[index] for name, array in batch.items()}
        logits = reference_logits(config, params, row)
        probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        chosen = probabilities[np.arange(len(logits)), row["targets"]]
        total -= (row["weights"].astype(np.float64) * np.log(chosen)).sum()
    return total / batch["weights"].astype(np.float64).sum()


def reference_slopes(config: Any, params: Any, batch: Any, directions: Any) -> list[float]:
    """The loss's slope along each direction, by central differences: in float64 good to 1e-8."""
    step = 1e-5

    def moved(direction: Any, by: float) -> float:
        moved = jax.tree.map(lambda array, change: array + by * change, params, direction)
        return reference_loss(config, moved, batch)

    return [(moved(each, step) - moved(each, -step)) / (2 * step) for each in directions]


def probing_directions(params: Any, count: int) -> list[Any]:
    """For each array, directions in which it alone changes, in all of its values at once."""
    random = np.random.default_rng(5)
    leaves, tree = jax.tree.flatten(params)
    directions = []
    for index, leaf in enumerate(leaves):
        for _ in range(count):
            arrays = [np.zeros(each.shape) for each in leaves]
            arrays[index] = random.standard_normal(leaf.shape)
            directions.append(jax.tree.unflatten(tree, arrays))
    return directions


@pytest.fixture(scope="module", params=VARIANTS)
def case(request: pytest.FixtureRequest, decoder: Any) -> tuple[Any, Any]:
    """A decoder, and its parameters in float64."""
    compiled = decoder(**VARIANTS[request.param])
    return compiled, jax.tree.map(lambda array: array.astype(np.float64), compiled.params)


def relative_error(found: Any, wanted: Any) -> float:
    found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def test_logits_and_loss_agree_with_the_reference(case: Any, packed: Any) -> None:
    compiled, params = case
    rows = [{name: array[index] for name, array in packed.items()} for index in range(3)]
    wanted = np.stack([reference_logits(compiled.config, params, row) for row in rows])
    assert relative_error(compiled.logits(compiled.params, packed), wanted) < LOGITS_BOUND
    loss = float(compiled.gradient(compiled.params, packed, jax.random.key(0))[0])
    assert loss == pytest.approx(reference_loss(compiled.config, params, packed), rel=LOGITS_BOUND)


def test_gradient_agrees_with_the_reference(
    case: Any, packed: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    compiled, params = case
    _, grads = compiled.gradient(compiled.params, packed, jax.random.key(0))
    directions = probing_directions(params, count=6)
    wanted = np.array(reference_slopes(compiled.config, params, packed, directions))
    found = np.array(
        [
            sum(
                np.vdot(np.asarray(grad, np.float64), change)
                for grad, change in zip(
                    jax.tree.leaves(grads), jax.tree.leaves(direction), strict=True
                )
            )
            for direction in directions
        ]
    )
    error = relative_error(found, wanted)
    with capsys.disabled():
        print(f" [relative gradient error {error:.1e}]", end="")
    assert error < GRADIENT_BOUND
    for info, part in zip(
        jax.tree.leaves(compiled.model.params), range(0, len(found), 6), strict=True
    ):
        assert (
            relative_error(found[part : part + 6], wanted[part : part + 6]) < 5 * GRADIENT_BOUND
        ), info.path
