"""The decoder's parameters: what is said of them, what they are at first, and the presets."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np
import pytest
from trainer_nnx.decoder import decoder_model

from trainer_core.decoder import PRESETS, DecoderConfig
from trainer_core.decoder_parameters import decoder_parameters, initialize
from trainer_core.types import ParamInfo

KEY = jax.random.key(1)
SMALL = {"vocab": 256, "layers": 2, "width": 64, "heads": 4, "kv_heads": 2, "mlp": 96}
CHOICES = {
    "as it is": {},
    "unrolled": {"scan": False},
    "untied": {"tied": False},
    "no normed heads": {"qk_norm": False},
    "bfloat16": {"param_dtype": "bfloat16"},
}


def count(config: DecoderConfig) -> int:
    infos: list[ParamInfo] = jax.tree.leaves(decoder_parameters(config))
    return sum(math.prod(info.shape) for info in infos)


@pytest.fixture(scope="module")
def first() -> dict[str, dict[str, Any]]:
    """The first parameters of scanned and of unrolled layers."""

    def initialised(scan: bool) -> dict[str, Any]:
        config = DecoderConfig(**SMALL, scan=scan)
        lowered = jax.jit(lambda key: initialize(config, key)).lower(KEY)
        # The random bits' code takes long to optimise, and the values are the same without.
        return lowered.compile({"xla_backend_optimization_level": 1})(KEY)

    return {"scanned": initialised(True), "unrolled": initialised(False)}


@pytest.mark.parametrize(
    ("preset", "wanted"), [("llama3-8b", 8_030_261_248), ("llama3-70b", 70_553_706_496)]
)
def test_llama_presets_have_exactly_its_parameters(preset: str, wanted: int) -> None:
    assert count(DecoderConfig(preset=preset)) == wanted


@pytest.mark.parametrize(
    ("preset", "millions"),
    [("gpt2-small", 124), ("gpt2-medium", 355), ("gpt2-large", 774), ("gpt2-xl", 1558)],
)
def test_gpt2_presets_are_of_its_sizes(preset: str, millions: int) -> None:
    assert count(DecoderConfig(preset=preset)) / 1e6 == pytest.approx(millions, rel=0.01)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_builds_without_allocating(preset: str) -> None:
    model = decoder_model(DecoderConfig(preset=preset))
    assert model.vocabulary == PRESETS[preset]["vocab"]
    assert model.context == PRESETS[preset].get("context")
    assert model.summary["preset"] == preset


@pytest.mark.parametrize("choice", CHOICES)
def test_what_is_said_of_the_parameters_is_what_init_returns(choice: str) -> None:
    model = decoder_model(DecoderConfig(**(SMALL | CHOICES[choice])))
    params, buffers = jax.eval_shape(model.init, KEY)
    said = jax.tree.map(lambda info: (info.shape, str(info.dtype)), model.params)
    found = jax.tree.map(lambda array: (array.shape, str(array.dtype)), params)
    assert said == found
    assert buffers == model.buffers == {}


def test_every_info_stands_at_its_path() -> None:
    for scan in (True, False):
        infos = decoder_parameters(DecoderConfig(**SMALL, scan=scan))
        for path, info in jax.tree_util.tree_leaves_with_path(infos):
            assert "/".join(key.key for key in path) == info.path


def test_roles_follow_the_arrays_into_and_out_of_each_matrix() -> None:
    infos = decoder_parameters(DecoderConfig(**SMALL, tied=False))
    layers = infos["layers"]

    def told(info: ParamInfo) -> list[tuple[str | None, str]]:
        return [(axis.name, axis.role) for axis in info.axes]

    stack = ("layers", "stack")
    assert told(layers["attention"]["query"]["kernel"]) == [
        stack,
        ("embed", "in"),
        ("heads", "out"),
        ("head_dim", "out"),
    ]
    assert told(layers["attention"]["out"]["kernel"]) == [
        stack,
        ("heads", "in"),
        ("head_dim", "in"),
        ("embed", "out"),
    ]
    assert told(layers["mlp"]["down"]["kernel"]) == [stack, ("mlp", "in"), ("embed", "out")]
    assert told(infos["unembed"]["kernel"]) == [("embed", "in"), ("vocab", "out")]
    kinds = {info.kind for info in jax.tree.leaves(infos)}
    assert kinds == {"matrix", "embedding", "unembedding", "norm"}


def test_scanned_and_unrolled_layers_begin_bitwise_equal(first: Any) -> None:
    for layer in range(2):
        one = jax.tree.map(lambda array, layer=layer: array[layer], first["scanned"]["layers"])
        other = first["unrolled"]["layers"][str(layer)]
        assert jax.tree.all(jax.tree.map(np.array_equal, one, other))
    assert np.array_equal(
        first["scanned"]["embed"]["embedding"], first["unrolled"]["embed"]["embedding"]
    )


def test_no_two_parameters_and_no_two_layers_begin_alike(first: Any) -> None:
    drawn = [
        np.asarray(leaf).ravel()[:100]
        for leaf in jax.tree.leaves(first["unrolled"])
        if np.std(leaf) > 0
    ]
    unit = np.array([each / np.linalg.norm(each) for each in drawn])
    correlations = np.abs(unit @ unit.T - np.eye(len(unit)))
    assert correlations.max() < 0.6


def test_first_values_have_the_promised_spread(first: Any) -> None:
    params = first["scanned"]
    layers = params["layers"]
    spreads = {
        "embedding": (params["embed"]["embedding"], 64**-0.5),
        "query": (layers["attention"]["query"]["kernel"], 64**-0.5),
        "gate": (layers["mlp"]["gate"]["kernel"], 64**-0.5),
        "out": (layers["attention"]["out"]["kernel"], 64**-0.5 * 4**-0.5),
        "down": (layers["mlp"]["down"]["kernel"], 94**-0.5 * 4**-0.5),
    }
    for name, (array, wanted) in spreads.items():
        assert np.std(array) == pytest.approx(wanted, rel=0.03), name
    assert np.all(layers["mlp_norm"]["scale"] == 1)
