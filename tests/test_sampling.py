"""Sampling: one token after the other, in one compiled function, as a plain loop would."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from trainer_core.decoder import DecoderConfig
from trainer_core.errors import UserError
from trainer_core.sampling import sample, window_size

pytestmark = [pytest.mark.usefixtures("quick_compiles"), pytest.mark.aside]
trainer_nnx = pytest.importorskip("trainer_nnx.decoder")

WINDOW = 8
CONFIG = DecoderConfig(vocab=32, layers=1, width=16, heads=2, kv_heads=1, mlp=32)
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def decoder() -> tuple[Any, Any]:
    """A program around a decoder with random parameters, and its state."""
    model = trainer_nnx.decoder_model(CONFIG)
    random = np.random.default_rng(1)
    params = jax.tree.map(
        lambda info: random.normal(0, 0.3, info.shape).astype(np.float32), model.params
    )
    return program(model.logits, params), SimpleNamespace(params=params, buffers={})


def program(logits: Callable[..., Any] | None, params: Any, context: int | None = None) -> Any:
    """What `sample` reads of a Program."""
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:1])
    whole = NamedSharding(mesh, PartitionSpec())
    state = SimpleNamespace(params=jax.tree.map(lambda _: whole, params), buffers={})
    return SimpleNamespace(
        model=SimpleNamespace(logits=logits, context=context),
        shardings=SimpleNamespace(state=state, replicated=whole),
        abstract_batch={"tokens": jax.ShapeDtypeStruct((4, WINDOW), jnp.int32)},
    )


@pytest.mark.parametrize("prompt", [1, WINDOW - 2, WINDOW, WINDOW + 3])
def test_sampled_text_is_that_of_a_plain_loop(decoder: tuple[Any, Any], prompt: int) -> None:
    made, state = decoder
    tokens = np.arange(3, 3 + prompt)
    got = sample(made, state, tokens, 12, 0.0, KEY)

    want = list(tokens)
    logits = jax.jit(made.model.logits)
    for _ in range(12):
        seen = np.array(want[-WINDOW:])[None]
        want.append(int(np.argmax(logits(state.params, state.buffers, {"tokens": seen})[0, -1])))
    np.testing.assert_array_equal(got, want)
    assert got.dtype == np.int32


def test_same_key_gives_the_same_text_and_another_key_another(decoder: tuple[Any, Any]) -> None:
    made, state = decoder
    texts = [sample(made, state, [1], 30, 1.0, jax.random.key(seed)).tolist() for seed in (0, 0, 1)]
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]


@pytest.mark.parametrize(("temperature", "share"), [(1.0, 0.75), (0.5, 0.9), (2.0, 0.634)])
def test_tokens_are_drawn_from_the_softmax_at_the_temperature(
    temperature: float, share: float
) -> None:
    def logits(params: Any, buffers: Any, batch: Any) -> jax.Array:
        return jnp.broadcast_to(jnp.log(jnp.array([0.25, 0.75])), (*batch["tokens"].shape, 2))

    state = SimpleNamespace(params={}, buffers={})
    drawn = sample(program(logits, {}), state, [0], 4000, temperature, KEY)[1:]
    # Four standard deviations of the mean of 4000 draws are below 0.032.
    assert abs(drawn.mean() - share) < 0.032


def test_model_is_traced_once_however_long_the_text(decoder: tuple[Any, Any]) -> None:
    made, state = decoder
    traced = []

    def counting(*arguments: Any) -> Any:
        traced.append(1)
        return made.model.logits(*arguments)

    sample(program(counting, state.params), state, [1, 2], 50, 1.0, KEY)
    assert len(traced) == 1


def test_window_is_a_training_sequence_unless_the_model_reads_less() -> None:
    assert window_size(program(None, {})) == WINDOW
    assert window_size(program(None, {}, context=5)) == 5
    assert window_size(program(None, {}, context=500)) == WINDOW


def test_nothing_is_added_for_length_0(decoder: tuple[Any, Any]) -> None:
    made, state = decoder
    assert sample(made, state, [4, 2], 0, 1.0, KEY).tolist() == [4, 2]


def test_empty_prompt_and_model_without_logits_are_refused(decoder: tuple[Any, Any]) -> None:
    made, state = decoder
    with pytest.raises(UserError, match="the prompt is empty"):
        sample(made, state, [], 5, 1.0, KEY)
    with pytest.raises(UserError, match="gives no logits"):
        sample(program(None, {}), state, [1], 5, 1.0, KEY)
    made = program(made.model.logits, state.params)
    made.abstract_batch = {"x": jax.ShapeDtypeStruct((4, 3), jnp.float32)}
    with pytest.raises(UserError, match="hold no tokens"):
        sample(made, state, [1], 5, 1.0, KEY)
