"""What comes out of the iteration: nearly orthogonal, whatever goes in."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from trainer_muon import orthogonalize
from trainer_muon.coefficients import PRESETS, coefficients

# Where each polynomial brings the singular values of a Gaussian of 64 x 256, which lie within 1 : 3
# (the standard one does not converge, by design).
RANGES = {
    "standard": (0.67, 1.21),
    "quintic": (0.85, 1.15),
    "polar_express": (0.85, 1.15),
    "deepseek_v4": (0.999, 1.002),
}
# Both orders of the same float32 products, 5 to 10 steps of a map whose slope is up to 8. Found:
# 3e-6; 3e-5 of a single column, whose one singular value takes all of the polynomial's slope.
ROUNDING = 1e-4


def gaussian(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@functools.partial(jax.jit, static_argnames=("preset", "dtype", "gram"))
def orthogonal(x: Any, preset: str = "standard", dtype: str = "float32", gram: bool = True) -> Any:
    return orthogonalize(x, coefficients(preset), dtype=jnp.dtype(dtype), gram=gram)


def relative(found: Any, expected: Any) -> float:
    found, expected = (np.asarray(each, np.float64) for each in (found, expected))
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("gram", [True, False])
@pytest.mark.parametrize("preset", PRESETS)
def test_singular_values_come_near_one(preset: str, gram: bool) -> None:
    values = np.linalg.svd(orthogonal(gaussian(64, 256), preset, gram=gram), compute_uv=False)
    low, high = RANGES[preset]
    assert low < values.min() <= values.max() < high


@pytest.mark.parametrize("gram", [True, False])
@pytest.mark.parametrize("preset", PRESETS)
def test_singular_values_are_what_the_polynomials_make_of_them(preset: str, gram: bool) -> None:
    x, (steps, safety) = gaussian(64, 256), reference.PRESETS[preset]
    expected = np.linalg.svd(x.astype(np.float64), compute_uv=False)
    expected /= np.linalg.norm(expected) * safety
    for a, b, c in steps:
        expected = a * expected + b * expected**3 + c * expected**5
    found = np.linalg.svd(orthogonal(x, preset, gram=gram), compute_uv=False)
    np.testing.assert_allclose(found, np.sort(expected)[::-1], atol=ROUNDING)


@pytest.mark.parametrize("preset", PRESETS)
def test_square_matrices_have_most_singular_values_near_one(preset: str) -> None:
    """The smallest of a square Gaussian is nearly 0, and may stay there: its percentiles count."""
    values = np.linalg.svd(orthogonal(gaussian(128, 128), preset), compute_uv=False)
    assert np.percentile(values, 5) > 0.65
    assert values.max() < RANGES[preset][1]


@pytest.mark.parametrize("gram", [True, False])
def test_singular_vectors_are_kept(gram: bool) -> None:
    x = gaussian(32, 96).astype(np.float64)
    u, _, v = np.linalg.svd(x, full_matrices=False)
    found = u.T @ np.asarray(orthogonal(x.astype(np.float32), gram=gram), np.float64) @ v.T
    # Float32's rounding (6e-8), over the products of 15 matrices of order 1.
    np.testing.assert_allclose(found - np.diag(np.diag(found)), 0, atol=1e-5)


@pytest.mark.parametrize("shape", [(16, 64), (64, 16), (24, 24), (5, 7), (1, 9), (9, 1), (1, 1)])
@pytest.mark.parametrize("preset", PRESETS)
def test_it_is_the_published_iteration(preset: str, shape: tuple[int, int]) -> None:
    x = gaussian(*shape)
    expected = reference.newton_schulz(x, *reference.PRESETS[preset])
    for gram in (True, False):
        assert relative(orthogonal(x, preset, gram=gram), expected) < ROUNDING


def test_bfloat16_is_within_its_own_rounding() -> None:
    """Eight bits a step, 15 products: a tenth; what torch's bfloat16 shows against float32 too."""
    x = gaussian(32, 48)
    found = orthogonal(x, dtype="bfloat16", gram=False)
    assert found.dtype == jnp.bfloat16
    assert relative(found.astype(jnp.float32), reference.newton_schulz(x)) < 0.1


@pytest.mark.parametrize("gram", [True, False])
def test_a_transposed_matrix_gives_the_transposed_result(gram: bool) -> None:
    x = gaussian(12, 40)
    # To the bit on some CPUs; others add up the norm, or a product, in another order.
    assert relative(orthogonal(x.T, gram=gram), orthogonal(x, gram=gram).T) < ROUNDING


def test_rotations_pass_through() -> None:
    x = gaussian(16, 40)
    left, right = (np.linalg.qr(gaussian(n, n, seed=n))[0] for n in (16, 40))
    turned = np.asarray(left @ x @ right, np.float32)
    assert relative(orthogonal(turned), left @ np.asarray(orthogonal(x)) @ right) < ROUNDING


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("size", [1e-30, 1e-12, 1e-6, 1e6, 1e20, 1e30])
def test_the_size_of_a_gradient_does_not_matter(size: float, preset: str) -> None:
    x = gaussian(16, 40)
    scaled = (x.astype(np.float64) * size).astype(np.float32)
    # Equal up to the rounding of the scaled input itself, amplified like any other.
    assert relative(orthogonal(scaled, preset), orthogonal(x, preset)) < ROUNDING


@pytest.mark.parametrize("gram", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_zeros_stay_exactly_zero_and_leave_their_neighbours_alone(dtype: str, gram: bool) -> None:
    iteration = "float32" if dtype != "bfloat16" else "bfloat16"
    gram = gram and iteration == "float32"
    one = jnp.asarray(gaussian(8, 24), dtype)
    together = orthogonal(jnp.stack([one, jnp.zeros_like(one)]), dtype=iteration, gram=gram)
    alone = orthogonal(one[None], dtype=iteration, gram=gram)
    np.testing.assert_array_equal(together[1], 0)
    # A batch of two and of one are other programs: equal up to rounding.
    tolerance = 1e-5 if iteration == "float32" else 0.05
    np.testing.assert_allclose(
        np.asarray(together[0], np.float32), np.asarray(alone[0], np.float32), atol=tolerance
    )


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_is_seen_and_stays_in_its_matrix(bad: float) -> None:
    x = gaussian(2, 8, 24)
    x[0, 3, 5] = bad
    found = np.asarray(orthogonal(x))
    assert np.isnan(found[0]).all()
    assert np.isfinite(found[1]).all()


def test_rows_of_zeros_stay_zero() -> None:
    x = gaussian(8, 24)
    x[3:] = 0
    np.testing.assert_allclose(orthogonal(x)[3:], 0, atol=1e-6)


def test_rank_one_becomes_one_singular_value_of_about_one() -> None:
    x = np.outer(gaussian(8), gaussian(24))
    values = np.linalg.svd(orthogonal(x), compute_uv=False)
    assert 0.67 < values[0] < 1.21
    # What rounding left of the others, 1e-8 of the first, grows by up to 3.4 a step.
    assert values[1] < 1e-3


@pytest.mark.parametrize(
    ("given", "steps", "message"),
    [
        ("dion", None, "there is no preset 'dion'; there is: standard, quintic, polar_express"),
        ("quintic", 3, "quintic has coefficients for 5 steps, not 3; leave steps away"),
        ([[1.5, -0.5, 0.0]] * 3, 7, "the list of triples has coefficients for 3 steps, not 7"),
        ([1.0, 2.0], None, r"1.0 is no triple of finite numbers \(a, b, c\)"),
        ([[1.0, 2.0]], None, r"\[1.0, 2.0\] is no triple"),
        ([], None, "give a triple"),
        ([1.0, 2.0, float("nan")], None, "no triple of finite numbers"),
    ],
)
def test_coefficients_of_a_wrong_shape_are_refused(given: Any, steps: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        coefficients(given, steps)


def test_a_gram_iteration_in_bfloat16_is_refused() -> None:
    with pytest.raises(ValueError, match="gram=True needs dtype float32, not bfloat16"):
        orthogonal(gaussian(8, 24), dtype="bfloat16")


def test_own_coefficients_are_taken() -> None:
    assert coefficients([1.5, -0.5, 0.0], 3).steps == ((1.5, -0.5, 0.0),) * 3
    assert coefficients([[1.5, -0.5, 0.0], [2.0, -1.5, 0.5]]).steps[1] == (2.0, -1.5, 0.5)
    assert len(coefficients("standard").steps) == 5


@pytest.mark.parametrize("by", ["polar_express", 5])
def test_what_is_no_coefficients_is_named(by: Any) -> None:
    with pytest.raises(TypeError, match=r"takes Coefficients, not .*coefficients\("):
        orthogonalize(jnp.eye(2), by)
