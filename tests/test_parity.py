"""Linen and NNX make the same model: bit for bit, wherever both exist."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from decoders import FRAMEWORKS, SMALL, rows, trained
from programs import assert_bitwise_equal

from trainer_core.decoder import DecoderConfig
from trainer_core.loss import build_loss
from trainer_core.randomness import fold
from trainer_core.types import Model

pytest.importorskip("trainer_nnx")
pytest.importorskip("trainer_linen")

pytestmark = pytest.mark.aside

# Both values of each choice, and each kind of remat scanned and unrolled.
VARIANTS: dict[str, dict[str, Any]] = {
    "scanned, tied": {},
    "scanned, untied, full remat": {"tied": False, "remat": "full"},
    "scanned, untied, dots remat, normed heads": {"tied": False, "remat": "dots", "qk_norm": True},
    "unrolled, untied, normed heads": {"scan": False, "tied": False, "qk_norm": True},
    "unrolled, tied, full remat": {"scan": False, "remat": "full"},
    "unrolled, tied, dots remat, bfloat16": {
        "scan": False,
        "remat": "dots",
        "compute_dtype": "bfloat16",
    },
}
# Whole runs, compiled as a user's are.
RUNS: dict[str, tuple[dict[str, Any], int]] = {
    "scanned": ({}, 1),
    "scanned, full remat, microbatches": ({"remat": "full", "tied": False}, 4),
    "unrolled, dots remat": ({"scan": False, "remat": "dots"}, 1),
    "unrolled, microbatches": ({"scan": False, "tied": False}, 4),
}
KEY = jax.random.key(7)


def models(**changes: Any) -> list[Model]:
    from trainer_linen import decoder_model as linen
    from trainer_nnx import decoder_model as nnx

    config = DecoderConfig(**(SMALL | {"qk_norm": False} | changes))
    return [nnx(config), linen(config)]


def some_params(model: Model) -> Any:
    random = np.random.default_rng(5)
    return jax.tree.map(
        lambda info: random.standard_normal(info.shape).astype(info.dtype), model.params
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters_are_described_alike(variant: str) -> None:
    nnx, linen = models(**VARIANTS[variant])
    assert nnx.params == linen.params
    assert nnx.buffers == linen.buffers == {}
    for name in ("summary", "vocabulary", "context", "coefficients"):
        assert getattr(nnx, name) == getattr(linen, name)


@pytest.mark.parametrize("scan", [True, False])
def test_the_same_seed_gives_the_same_first_parameters(scan: bool, quick_compiles: None) -> None:
    nnx, linen = (jax.jit(model.init)(KEY) for model in models(scan=scan, tied=False))
    assert_bitwise_equal(linen, nnx)


@pytest.mark.parametrize(
    "variant",
    [pytest.param(name, marks=[pytest.mark.long] * (at != 1)) for at, name in enumerate(VARIANTS)],
)
def test_logits_loss_and_gradient_are_equal(variant: str, quick_compiles: None) -> None:
    """Without dropout, whose random bits take long to compile; the runs below have it."""
    batch, found = rows(4), []
    for model in models(dropout=0.0, **VARIANTS[variant]):
        assert model.logits is not None
        loss, logits = build_loss(model), model.logits

        @jax.jit
        def all_of_it(params: Any, loss: Any = loss, logits: Any = logits) -> Any:
            differentiated = jax.value_and_grad(lambda each: loss(each, {}, batch, KEY)[0])
            return differentiated(params), logits(params, {}, batch)

        found.append(all_of_it(some_params(model)))
    assert_bitwise_equal(found[1], found[0])


def test_without_remat_the_two_are_one_program() -> None:
    """Not only equal numbers: what is handed to XLA is the same text."""
    batch, texts = rows(4), []
    for model in models(dropout=0.0):
        loss = build_loss(model)

        def gradient(params: Any, loss: Any = loss) -> Any:
            return jax.value_and_grad(lambda each: loss(each, {}, batch, KEY)[0])(params)

        texts.append(jax.jit(gradient).lower(some_params(model)).as_text())
    assert texts[0] == texts[1]


def test_dropout_draws_the_same_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each place asks for the mask of the same key, in the same order."""
    from trainer_core import layers

    def keys_of(model: Model) -> list[Any]:
        keys: list[Any] = []

        def noted(x: Any, rate: float, key: Any) -> Any:
            keys.append(jax.random.key_data(key))
            return x

        with monkeypatch.context() as patch:
            patch.setattr(layers, "dropout", noted)
            model.terms(some_params(model), {}, rows(1), KEY, True)
        return keys

    nnx, linen = (keys_of(model) for model in models(scan=False))
    places = [("embed",)]
    places += [("layers", index, site) for index in range(2) for site in ("attention", "mlp")]
    assert_bitwise_equal(linen, nnx)
    assert_bitwise_equal(linen, [jax.random.key_data(fold(KEY, *place)) for place in places])


def both_runs(folder: Path, steps: int, **tables: Any) -> None:
    """Assert that the whole state after some steps, and every number reported, are equal."""
    states, reports = [], []
    for framework in FRAMEWORKS:
        directory = folder / framework
        states.append(trained(directory, framework, steps, **tables).state)
        lines = (directory / "metrics.jsonl").read_text().splitlines()
        assert len(lines) == steps
        timeless = ("seconds", "tokens_per_second")
        reports.append(
            [
                {key: value for key, value in json.loads(line).items() if key not in timeless}
                for line in lines
            ]
        )
    assert reports[0] == reports[1]
    assert_bitwise_equal(states[1], states[0])


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.long] * (at != 3)) for at, name in enumerate(RUNS)],
)
def test_fifty_steps_of_the_loop_end_in_the_same_state(name: str, tmp_path: Path) -> None:
    choices, microbatches = RUNS[name]
    accumulate = {"microbatches": microbatches}
    both_runs(tmp_path, 50, model=choices, accumulate=accumulate)


@pytest.mark.eight_devices
@pytest.mark.parametrize(
    "name", [list(RUNS)[1], pytest.param(list(RUNS)[2], marks=pytest.mark.long)]
)
def test_on_eight_devices_the_two_are_equal_too(
    name: str, tmp_path: Path, quick_compiles: None
) -> None:
    choices, microbatches = RUNS[name]
    both_runs(
        tmp_path,
        10,
        model=choices,
        data={"batch_size": 16},
        accumulate={"microbatches": microbatches},
        shard={"mesh": {"data": 2, "fsdp": 2, "tensor": 2}},
    )
