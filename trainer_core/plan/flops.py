"""The operations of a traced function: its products of matrices and convolutions, loops unrolled.

XLA's own count takes the body of a loop once, however often it runs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import attrs
import jax
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.interpreters import partial_eval

from trainer_core.loss import build_loss
from trainer_core.program import Program

# Their work is not in the program that JAX traces.
_OPAQUE = ("pallas_call", "ffi_call", "custom_call", "tpu_custom_call", "cudnn")


@attrs.define
class Products:
    """The products of one call, all devices together: a multiplication and an addition are two.

    Attributes:
        by_dtype: dtype of the left factor to operations.
        in_loops_once: the sum of all, where a loop's body counts once.
        unknown: primitives whose products are not known, and loops of unknown length.
    """

    by_dtype: Counter[str] = attrs.field(factory=Counter)
    in_loops_once: int = 0
    unknown: set[str] = attrs.field(factory=set)

    @property
    def total(self) -> int:
        return sum(self.by_dtype.values())


def products_of(closed: ClosedJaxpr) -> Products:
    """Return the products of a traced function; what no result depends on does not count."""
    jaxpr, _ = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
    found = Products()
    _add(found, jaxpr, 1, 1)
    return found


def forward_products(program: Program) -> Products:
    """Return the products of the forward pass alone, over a global batch.

    Three times as many is what a step needs: its backward pass makes two products of each one
    (Kaplan et al., "Scaling Laws for Neural Language Models", 2020, section 2.1). The rest of
    what a step makes is computed again, or the optimizer's.
    """
    state = program.abstract_state
    return products_of(
        jax.make_jaxpr(build_loss(program.model))(
            state.params, state.buffers, program.abstract_batch, state.key
        )
    )


def _add(found: Products, jaxpr: Jaxpr, times: int, times_once: int) -> None:
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        if name in _COUNTS:
            left: Any = eqn.invars[0].aval
            count = _COUNTS[name](eqn)
            found.by_dtype[str(left.dtype)] += count * times
            found.in_loops_once += count * times_once
        if any(name.startswith(each) for each in _OPAQUE):
            found.unknown.add(name)
        elif name == "cond":
            # One branch is taken: the one with most work, as nothing else is known.
            branches = [_inner(branch, times, times_once) for branch in eqn.params["branches"]]
            _merge(found, max(branches, key=lambda each: each.total))
        else:
            repeated, shared = _repetitions(eqn)
            for inner in _jaxprs(eqn.params):
                part = _inner(inner, times * repeated * shared, times_once * shared)
                if name == "while" and part.total:
                    part.unknown.add("a loop of unknown length")
                _merge(found, part)


def _inner(jaxpr: Any, times: int, times_once: int) -> Products:
    found = Products()
    _add(found, getattr(jaxpr, "jaxpr", jaxpr), times, times_once)
    return found


def _merge(found: Products, part: Products) -> None:
    found.by_dtype += part.by_dtype
    found.in_loops_once += part.in_loops_once
    found.unknown |= part.unknown


def _repetitions(eqn: Any) -> tuple[int, int]:
    """How often a loop runs, and on how many devices a part is written for one of them."""
    if eqn.primitive.name == "scan":
        return int(eqn.params["length"]), 1
    if eqn.primitive.name == "shard_map":
        mesh = eqn.params["mesh"]
        axes = eqn.params.get("manual_axes", mesh.axis_names)
        return 1, math.prod(mesh.shape[axis] for axis in axes)
    return 1, 1


def _jaxprs(params: Any) -> Iterator[Any]:
    for value in params.values():
        for each in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(each, (Jaxpr, ClosedJaxpr)):
                yield each


def _dot(eqn: Any) -> int:
    (over, _), _ = eqn.params["dimension_numbers"]
    left, out = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    return int(2 * math.prod(out) * math.prod(left[axis] for axis in over))


def _convolution(eqn: Any) -> int:
    kernel, out = eqn.invars[1].aval.shape, eqn.outvars[0].aval.shape
    channels_out = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
    return int(2 * math.prod(out) * math.prod(kernel) // channels_out)


def _ragged(eqn: Any) -> int:
    (over, _), _ = eqn.params["ragged_dot_dimension_numbers"].dot_dimension_numbers
    left, out = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    return int(2 * math.prod(out) * math.prod(left[axis] for axis in over))


_COUNTS = {
    "dot_general": _dot,
    "conv_general_dilated": _convolution,
    "ragged_dot_general": _ragged,
}
