"""What the decoder promises, whatever its numbers."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trainer_nnx.decoder import Decoder, decoder_model

from trainer_core import layers
from trainer_core.decoder import DecoderConfig
from trainer_core.decoder_parameters import decoder_parameters, initialize
from trainer_core.errors import UserError
from trainer_core.losses import token_cross_entropy

KEY = jax.random.key(1)


def largest_difference(one: Any, other: Any) -> float:
    differences = jax.tree.map(lambda a, b: float(np.max(np.abs(a - b))), one, other)
    return max(jax.tree.leaves(differences))


def stacked(config: DecoderConfig, params: Any) -> Any:
    """The parameters of unrolled layers, stacked as scanned ones are."""
    each = [params["layers"][str(layer)] for layer in range(config.layers)]
    return params | {"layers": jax.tree.map(lambda *arrays: np.stack(arrays), *each)}


def test_scanned_layers_equal_unrolled_ones(decoder: Any, batch: Any) -> None:
    """In float32, up to the order in which XLA fuses: a few units in the last place."""
    scanned, unrolled = decoder(), decoder(scan=False)
    loss, grads = scanned.gradient(scanned.params, batch, KEY)
    other_loss, other_grads = unrolled.gradient(unrolled.params, batch, KEY)
    assert float(loss) == pytest.approx(float(other_loss), rel=3e-7)
    assert largest_difference(grads, stacked(unrolled.config, other_grads)) < 2e-6


@pytest.mark.parametrize("remat", ["full", pytest.param("dots", marks=pytest.mark.long)])
def test_remat_changes_no_gradient(decoder: Any, batch: Any, remat: str) -> None:
    loss, grads = decoder().gradient(decoder().params, batch, KEY)
    other_loss, other_grads = decoder(remat=remat).gradient(decoder().params, batch, KEY)
    assert float(loss) == float(other_loss)
    assert largest_difference(grads, other_grads) < 1e-6


def test_a_later_token_never_changes_an_earlier_logit(decoder: Any, batch: Any) -> None:
    small = decoder()
    changed = batch["tokens"].copy()
    changed[:, 6:] = (changed[:, 6:] + 1) % 11
    before = np.asarray(small.logits(small.params, batch))
    after = np.asarray(small.logits(small.params, batch | {"tokens": changed}))
    assert np.array_equal(before[:, :6], after[:, :6])
    assert not np.any(np.all(before[:, 6:] == after[:, 6:], axis=-1))


def test_segments_isolate_documents(decoder: Any, batch: Any, packed: Any) -> None:
    """A packed document has the logits that it has alone, and no other document changes them."""
    small, tokens = decoder(), batch["tokens"]
    both = np.asarray(small.logits(small.params, packed))

    changed = tokens.copy()
    changed[:, :4] = (changed[:, :4] + 1) % 11
    other = np.asarray(small.logits(small.params, packed | {"tokens": changed}))
    assert np.array_equal(both[:, 4:], other[:, 4:])

    alone = np.zeros_like(tokens)
    alone[:, :6] = tokens[:, 4:]
    second = np.asarray(small.logits(small.params, batch | {"tokens": alone}))
    assert np.max(np.abs(both[:, 4:] - second[:, :6])) < 1e-5


def test_only_distances_between_positions_count(decoder: Any, batch: Any) -> None:
    small = decoder()
    near = small.logits(small.params, batch)
    far = small.logits(small.params, batch | {"positions": batch["positions"] + 1000})
    # Float32 turns by 1000 radians with an error of 6e-5.
    assert largest_difference(near, far) < 2e-3


def test_tied_embeddings_have_no_output_matrix(decoder: Any) -> None:
    assert "unembed" not in decoder().model.params
    untied = DecoderConfig(tied=False, width=8, heads=2, vocab=5)
    assert decoder_parameters(untied)["unembed"]["kernel"].shape == (8, 5)


def test_a_target_of_weight_zero_counts_for_nothing(decoder: Any, batch: Any) -> None:
    small = decoder()
    changed = batch["targets"].copy()
    changed[batch["weights"] == 0] = 0
    loss, grads = small.gradient(small.params, batch, KEY)
    other_loss, other_grads = small.gradient(small.params, batch | {"targets": changed}, KEY)
    assert float(loss) == float(other_loss)
    assert largest_difference(grads, other_grads) == 0


def test_bfloat16_computes_small_and_keeps_the_loss_in_float32(decoder: Any, batch: Any) -> None:
    low, full = decoder(compute_dtype="bfloat16"), decoder()
    found = jax.eval_shape(low.gradient, low.params, batch, KEY)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(found)} == {"float32"}
    logits = jax.eval_shape(low.model.logits, low.params, {}, batch)
    assert logits.dtype == jnp.float32
    loss, exact = low.loss(low.params, batch, KEY), full.gradient(full.params, batch, KEY)[0]
    assert float(loss) == pytest.approx(float(exact), rel=0.02)
    assert float(loss) != float(exact)


def test_parameters_in_bfloat16_are_those_in_float32_rounded() -> None:
    small = {"layers": 2, "width": 16, "heads": 2, "vocab": 8}
    wide = jax.eval_shape(lambda key: initialize(DecoderConfig(**small), key), KEY)
    narrow_config = DecoderConfig(**small, param_dtype="bfloat16")
    narrow = jax.eval_shape(lambda key: initialize(narrow_config, key), KEY)
    assert {leaf.dtype for leaf in jax.tree.leaves(narrow)} == {jnp.dtype("bfloat16")}
    assert jax.tree.structure(wide) == jax.tree.structure(narrow)
    assert {info.dtype for info in jax.tree.leaves(decoder_parameters(narrow_config))} == {
        jnp.dtype("bfloat16")
    }


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="there may be a cuDNN")
def test_attention_that_is_not_there_names_its_setting() -> None:
    query = jnp.ones((1, 4, 2, 8))
    with pytest.raises(UserError) as caught:
        layers.attention(query, query, query, None, "cudnn")
    assert str(caught.value) == (
        '[model] attention = "cudnn": JAX raised RuntimeError: cuDNN is not detected; set "auto" '
        'or "xla"'
    )
    assert caught.value.keys == ("model.attention",)


def test_unknown_attention_is_not_silently_replaced(decoder: Any, batch: Any) -> None:
    query = jnp.ones((1, 4, 2, 8))
    assert np.array_equal(
        layers.attention(query, query, query), layers.attention(query, query, query, None, "xla")
    )
    with pytest.raises(ValueError, match="flash"):
        layers.attention(query, query, query, None, "flash")


def test_activations_are_constrained_by_logical_names_of_their_rank(batch: Any) -> None:
    seen: set[tuple[str | None, ...]] = set()

    def constrain(x: jax.Array, names: tuple[str | None, ...]) -> jax.Array:
        assert x.ndim == len(names)
        seen.add(names)
        return x

    config = DecoderConfig(vocab=11, layers=2, width=8, heads=2)
    model = decoder_model(config, constrain)
    params = jax.eval_shape(model.init, KEY)[0]
    jax.eval_shape(lambda params: model.terms(params, {}, batch, KEY, True), params)
    assert {("batch", "length", "embed"), ("batch", "length", "vocab")} <= seen


def test_the_module_is_an_ordinary_one_outside_of_a_run(decoder: Any, batch: Any) -> None:
    small = decoder()
    module = Decoder(small.config, small.params)
    logits = jax.jit(lambda tokens: module(tokens))(batch["tokens"])
    wanted = small.logits(small.params, batch)
    assert largest_difference(logits, wanted) < 1e-5


RATE = 0.25


def test_equal_keys_drop_the_same_and_other_steps_drop_something_else(
    decoder: Any, batch: Any
) -> None:
    dropping = decoder(dropout=RATE)
    keys = [KEY, KEY, *(jax.random.fold_in(KEY, step) for step in range(4))]
    losses = [float(dropping.loss(dropping.params, batch, key)) for key in keys]
    assert losses[0] == losses[1]
    assert len(set(losses)) == 5


def test_scanned_and_unrolled_layers_drop_the_same(decoder: Any, batch: Any) -> None:
    dropping, unrolled = decoder(dropout=RATE), decoder(dropout=RATE, scan=False)
    loss = float(dropping.loss(dropping.params, batch, KEY))
    assert float(unrolled.loss(unrolled.params, batch, KEY)) == pytest.approx(loss, rel=1e-6)


def test_every_place_in_every_layer_has_its_own_mask(
    batch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = DecoderConfig(
        vocab=11, layers=3, width=4, heads=2, kv_heads=1, mlp=4, dropout=RATE, scan=False
    )
    params = jax.tree.map(lambda info: np.ones(info.shape, np.float32), decoder_parameters(config))

    def keys_of(key: jax.Array) -> list[jax.Array]:
        keys: list[jax.Array] = []
        monkeypatch.setattr(
            layers, "dropout", lambda x, rate, key: keys.append(jax.random.key_data(key)) or x
        )
        Decoder(config, params)(batch["tokens"], key=key)
        return keys

    keys = [tuple(np.asarray(key)) for key in jax.jit(keys_of)(KEY)]
    assert len(keys) == len(set(keys)) == 1 + 2 * 3


def test_nothing_is_random_outside_of_training(decoder: Any, batch: Any) -> None:
    dropping = decoder(dropout=RATE)

    def program(train: bool) -> str:
        def terms(params: Any, key: Any) -> Any:
            return dropping.model.terms(params, {}, batch, key, train)[0]

        return str(jax.make_jaxpr(terms)(dropping.params, KEY))

    assert "random_bits" in program(train=True)
    assert "random" not in program(train=False)


def test_what_is_kept_is_scaled_to_keep_the_mean() -> None:
    dropped = np.asarray(layers.dropout(jnp.ones(40_000), RATE, KEY))
    assert set(np.unique(dropped)) == {np.float32(0), np.float32(1 / (1 - RATE))}
    assert np.mean(dropped == 0) == pytest.approx(RATE, abs=0.01)


def test_cross_entropy_of_huge_logits_is_finite_and_exact() -> None:
    logits = jnp.array([[[1e4, 0.0, -1e4], [0.0, 0.0, 0.0]]])
    term = token_cross_entropy(logits, jnp.array([[1, 2]]), jnp.array([[0.5, 2.0]]))
    assert float(term.sum) == pytest.approx(0.5 * 1e4 + 2 * np.log(3), rel=1e-6)
    assert float(term.weight) == 2.5


def test_a_position_that_does_not_count_may_be_not_finite() -> None:
    logits = jnp.array([[[jnp.nan, 0.0], [0.0, 0.0]]])
    term = token_cross_entropy(logits, jnp.array([[0, 1]]), jnp.array([[0, 1]]))
    assert float(term.sum) == pytest.approx(np.log(2))
    assert term.weight.dtype == jnp.float32
