"""The `[model]` table of the decoder: presets, what follows from a number, and mistakes."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from trainer_nnx.plugin import Decoder

from trainer_core.decoder import PRESETS
from trainer_core.errors import UserError
from trainer_core.settings import structure


def settings(**table: Any) -> Decoder:
    built: Decoder = structure(Decoder, table, "[model]", lambda key: "recipe.toml:3").instance
    return built


def test_numbers_come_from_the_preset_and_those_given_go_before() -> None:
    config = settings(preset="llama3-8b", layers=2, remat="dots").decoder_config()
    assert (config.layers, config.remat) == (2, "dots")
    assert (config.width, config.kv_heads, config.rope_theta) == (4096, 8, 500_000.0)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_number_of_a_preset_is_filled_in(preset: str) -> None:
    config = settings(preset=preset).decoder_config()
    for name, value in PRESETS[preset].items():
        assert getattr(config, name) == value
    assert config.heads * config.head_dim == config.width


@pytest.mark.parametrize(
    ("table", "follows"),
    [
        ({"width": 192}, {"heads": 4, "head_dim": 48, "kv_heads": 2, "mlp": 576}),
        ({"heads": 8}, {"width": 128, "head_dim": 16, "kv_heads": 4}),
        ({"width": 256, "heads": 8}, {"head_dim": 32, "kv_heads": 4, "mlp": 768}),
        ({"heads": 1}, {"head_dim": 128, "kv_heads": 1}),
        ({"head_dim": 64}, {"width": 128, "heads": 4, "head_dim": 64}),
    ],
)
def test_what_depends_on_a_given_number_follows_it(table: Any, follows: Any) -> None:
    config = settings(**table).decoder_config()
    assert {name: getattr(config, name) for name in follows} == follows


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"preset": "tyny"}, r"preset = \"tyny\" \(recipe.toml:3\).*did you mean 'tiny'"),
        ({"heads": 3}, r"heads = 3 \(recipe.toml:3\).*width 128 does not divide into 3 heads"),
        ({"width": 130}, r"width = 130 \(recipe.toml:3\).*does not divide into 4 heads"),
        ({"heads": 128}, r"heads = 128 .*even number of channels"),
        ({"kv_heads": 3}, r"kv_heads = 3 .*heads 4 is not a multiple of kv_heads 3"),
        ({"head_dim": 31}, r"head_dim = 31 .*odd"),
        ({"layers": 0}, r"layers = 0 \(recipe.toml:3\).*>= 1"),
        ({"width": -8}, r"width = -8 .*>= 1"),
        ({"vocab": 1.5}, r"vocab = 1.5 .*expected a whole number"),
        ({"layers": "many"}, r"layers = \"many\" .*expected a whole number"),
        ({"dropout": 1.0}, r"dropout = 1.0 .*< 1"),
        ({"dropout": -0.1}, r"dropout = -0.1 .*>= 0"),
        ({"rope_theta": 0.0}, r"rope_theta = 0.0 .*> 0"),
        ({"context": 0}, r"context = 0 .*>= 1"),
        ({"remat": "ful"}, r"remat = \"ful\" .*did you mean 'full'"),
        ({"attention": "flash"}, r"attention = \"flash\" .*cudnn"),
        ({"compute_dtype": "bf16"}, r"compute_dtype = \"bf16\" .*did you mean 'bfloat16'"),
        ({"param_dtype": "int8"}, r"param_dtype = \"int8\" .*float32"),
        ({"laiers": 3}, r"no setting 'laiers' .*did you mean 'layers'"),
    ],
)
def test_a_mistake_names_its_key_and_its_line(table: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        settings(**table)


def test_two_plugins_of_equal_settings_are_two_plugins() -> None:
    assert settings() != settings()
    assert settings().decoder_config() == settings().decoder_config()


def test_settings_are_checked_without_jax() -> None:
    code = (
        "import sys\n"
        "from trainer_nnx.plugin import Decoder, Module\n"
        "Decoder(preset='llama3-70b').decoder_config(); Module(module='a:B')\n"
        "assert not {'jax', 'flax'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
