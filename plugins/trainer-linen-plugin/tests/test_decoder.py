"""The decoder in Linen; that it is the one in NNX bit for bit, tests/test_parity.py shows."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import jax
import numpy as np
import pytest
from flax import linen as nn
from trainer_linen import Decoder, decoder_model

from trainer_core.decoder import PRESETS, DecoderConfig
from trainer_core.decoder_parameters import decoder_parameters
from trainer_core.types import ParamInfo

KEY = jax.random.key(1)
SMALL: dict[str, Any] = {
    "vocab": 11,
    "layers": 2,
    "width": 8,
    "heads": 4,
    "kv_heads": 2,
    "head_dim": 4,
    "mlp": 12,
    "qk_norm": False,
}
TOKENS = np.random.default_rng(3).integers(0, 11, (3, 10)).astype(np.int32)
BATCH = {"tokens": TOKENS, "targets": np.roll(TOKENS, -1, axis=1)}


@pytest.fixture(scope="module", params=[True, False], ids=["scanned", "unrolled"])
def config(request: pytest.FixtureRequest) -> DecoderConfig:
    return DecoderConfig(**SMALL, scan=request.param)


@pytest.fixture(scope="module")
def params(config: DecoderConfig) -> Any:
    random = np.random.default_rng(0)

    def draw(info: ParamInfo) -> Any:
        return random.standard_normal(info.shape).astype(np.float32)

    return jax.tree.map(draw, decoder_parameters(config))


def test_the_module_is_an_ordinary_one_outside_of_a_run(config: Any, params: Any) -> None:
    model = decoder_model(config)
    assert model.logits is not None
    logits = jax.jit(Decoder(config).apply)({"params": params}, TOKENS)
    wanted = jax.jit(model.logits)(params, {}, BATCH)
    assert np.max(np.abs(logits - wanted)) < 1e-5
    assert logits.shape == (3, 10, 11)


def test_init_makes_the_tree_of_a_run(config: Any) -> None:
    made = jax.eval_shape(Decoder(config).init, KEY, TOKENS)
    infos = decoder_parameters(config)
    assert made == {"params": jax.tree.map(lambda info: info.abstract, infos)}


def test_the_decoder_can_be_a_part_of_another_module(config: Any) -> None:
    class Scorer(nn.Module):
        @nn.compact
        def __call__(self, tokens: Any) -> Any:
            return nn.Dense(1)(Decoder(config, name="decoder")(tokens))

    made = jax.eval_shape(Scorer().init, KEY, TOKENS)
    infos = decoder_parameters(config)
    assert made["params"]["decoder"] == jax.tree.map(lambda info: info.abstract, infos)


def test_a_later_token_never_changes_an_earlier_logit(config: Any, params: Any) -> None:
    logits = jax.jit(decoder_model(config).logits)
    changed = TOKENS.copy()
    changed[:, 6:] = (changed[:, 6:] + 1) % 11
    before = np.asarray(logits(params, {}, {"tokens": TOKENS}))
    after = np.asarray(logits(params, {}, {"tokens": changed}))
    assert np.array_equal(before[:, :6], after[:, :6])
    assert not np.array_equal(before[:, 6:], after[:, 6:])


def test_a_parameter_that_is_missing_is_named(config: Any, params: Any) -> None:
    without = {name: each for name, each in params.items() if name != "final_norm"}
    with pytest.raises(ValueError, match="no parameter final_norm/scale"):
        jax.eval_shape(Decoder(config).apply, {"params": without}, TOKENS)


def test_nothing_is_random_outside_of_training(params: Any, config: Any) -> None:
    model = decoder_model(DecoderConfig(**SMALL, scan=config.scan, dropout=0.25))

    def program(train: bool) -> str:
        def terms(params: Any, key: Any) -> Any:
            return model.terms(params, {}, BATCH, key, train)[0]

        return str(jax.make_jaxpr(terms)(params, KEY))

    assert "random_bits" in program(train=True)
    assert "random" not in program(train=False)


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_remat_is_there_where_it_is_asked_for(config: Any, params: Any, remat: str) -> None:
    def gradient(remat: str) -> str:
        model = decoder_model(DecoderConfig(**SMALL, scan=config.scan, remat=remat))

        def loss(params: Any) -> Any:
            return model.terms(params, {}, BATCH, KEY, True)[0]["cross_entropy"].sum

        return str(jax.make_jaxpr(jax.grad(loss))(params))

    assert "prevent_cse" in gradient(remat)
    assert "prevent_cse" not in gradient("none")


def test_activations_are_constrained_by_logical_names_of_their_rank(
    config: Any, params: Any
) -> None:
    seen: set[tuple[str | None, ...]] = set()

    def constrain(x: jax.Array, names: tuple[str | None, ...]) -> jax.Array:
        assert x.ndim == len(names)
        seen.add(names)
        return x

    model = decoder_model(config, constrain)
    jax.eval_shape(lambda params: model.terms(params, {}, BATCH, KEY, True), params)
    assert {("batch", "length", "embed"), ("batch", "length", "vocab")} <= seen


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_builds_without_allocating(preset: str) -> None:
    model = decoder_model(DecoderConfig(preset=preset))
    assert model.vocabulary == PRESETS[preset]["vocab"]
    assert model.summary["preset"] == preset


def test_settings_are_checked_without_jax() -> None:
    code = (
        "import sys\n"
        "from trainer_linen.plugin import Decoder, Module\n"
        "Decoder(preset='llama3-70b').decoder_config(); Module(module='a:B')\n"
        "assert not {'jax', 'flax'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_run_imports_no_nnx_plugin() -> None:
    code = (
        "import sys\n"
        "from trainer_core.assemble import open_run\n"
        "from trainer_core.config import load_config\n"
        "from trainer_core.program import build_program\n"
        "config = load_config(None, ['model.use=linen', 'checkpoint.use=none'])\n"
        "build_program(*open_run(config))\n"
        "assert 'trainer_linen.decoder' in sys.modules\n"
        "assert not [name for name in sys.modules if name.startswith('trainer_nnx')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
