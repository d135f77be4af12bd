"""The nearest orthogonal matrix, nearly, by products of matrices alone."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from trainer_muon.coefficients import Coefficients

# Below it the chain on the Gram matrix costs more products than it saves, counted in flops.
_GRAM_PAYS_FROM = 1.5


def orthogonalize(
    x: jax.Array, by: Coefficients, *, dtype: Any = jnp.float32, gram: bool = True
) -> jax.Array:
    """Return U Vᵀ of each matrix U S Vᵀ, with singular values near 1 instead of exactly 1.

    It does not depend on the size of `x`: each matrix is divided by its largest element before
    its norm is taken, so that neither 1e20 nor 1e-20 overflows or vanishes. A matrix of zeros
    stays zero; one with an element that is not finite becomes NaN.

    Args:
        x: [..., m, n], of any float dtype.
        by: the coefficients.
        dtype: of the products' operands, which are added up in float32. On an accelerator JAX
            rounds float32 operands too, except those of the Gram iteration, unless
            `jax_default_matmul_precision` says otherwise.
        gram: iterate on X Xᵀ where n / m or m / n > 1.5, from where it takes fewer flops:
            `X_k = Q_k X_0`, `Q_k = P_k … P_1` (Gram Newton-Schulz, Dao AI Lab, 2026). Needs
            float32: its rounding errors are amplified where those of X_k are not.

    Returns:
        [..., m, n] in `dtype`.

    Raises:
        TypeError: coefficients that are none.
        ValueError: a Gram iteration in another dtype than float32.
    """
    if not isinstance(by, Coefficients):
        raise TypeError(
            f"orthogonalize takes Coefficients, not {by!r}; make them: "
            f"trainer_muon.coefficients.coefficients({by if isinstance(by, str) else 'NAME'!r})"
        )
    rows, columns = x.shape[-2:]
    if x.size == 0:
        return x.astype(dtype)
    if rows > columns:
        return jnp.matrix_transpose(
            orthogonalize(jnp.matrix_transpose(x), by, dtype=dtype, gram=gram)
        )
    x = _normalized(x, by.safety).astype(dtype)
    if gram and columns > _GRAM_PAYS_FROM * rows and len(by.steps) > 1:
        if x.dtype != jnp.float32:
            raise ValueError(f"gram=True needs dtype float32, not {x.dtype}; give gram=False")
        return _by_gram(x, by)
    return _by_itself(x, by)


def _normalized(x: jax.Array, safety: float) -> jax.Array:
    x = x.astype(jnp.float32)
    largest = jnp.max(jnp.abs(x), axis=(-2, -1), keepdims=True)
    x = x / jnp.where(largest == 0, 1.0, largest)
    norm = jnp.sqrt(jnp.sum(jnp.square(x), axis=(-2, -1), keepdims=True))
    return x / jnp.where(norm == 0, 1.0, norm * safety)


def _by_itself(x: jax.Array, by: Coefficients) -> jax.Array:
    def step(x: jax.Array, triple: jax.Array) -> tuple[jax.Array, None]:
        a, b, c = triple
        gram = _product(x, jnp.matrix_transpose(x))
        small = gram.astype(x.dtype)
        polynomial = (b * gram + c * _product(small, small)).astype(x.dtype)
        return (a * x.astype(jnp.float32) + _product(polynomial, x)).astype(x.dtype), None

    done: jax.Array = jax.lax.scan(step, x, jnp.asarray(by.steps, jnp.float32))[0]
    return done


def _by_gram(x: jax.Array, by: Coefficients) -> jax.Array:
    # At the highest precision: an accelerator's float32 products have bfloat16 operands.
    product = partial(_product, precision=jax.lax.Precision.HIGHEST)
    identity = jnp.eye(x.shape[-2], dtype=x.dtype)

    def polynomial(gram: jax.Array, triple: Any) -> jax.Array:
        a, b, c = triple
        made: jax.Array = a * identity + b * gram + c * product(gram, gram)
        return made

    def step(carry: tuple[jax.Array, jax.Array], triple: Any) -> tuple[Any, None]:
        chain, gram = carry
        factor = polynomial(gram, triple)
        return (product(factor, chain), product(product(factor, gram), factor)), None

    # The first and the last step stand outside the scan: the one has no chain yet, the other
    # needs no Gram matrix any more.
    triples = jnp.asarray(by.steps, jnp.float32)
    gram = product(x, jnp.matrix_transpose(x))
    chain = polynomial(gram, triples[0])
    gram = product(product(chain, gram), chain)
    (chain, gram), _ = jax.lax.scan(step, (chain, gram), triples[1:-1])
    chain = product(polynomial(gram, triples[-1]), chain)
    return product(chain, x)


def _product(x: jax.Array, y: jax.Array, precision: jax.lax.PrecisionLike = None) -> jax.Array:
    return jnp.matmul(x, y, precision=precision, preferred_element_type=jnp.float32)
