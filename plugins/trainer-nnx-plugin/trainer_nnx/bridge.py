"""Linen modules inside an NNX module, by `nnx.bridge.ToNNX`: what they tell, sow and refuse."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator
from typing import Any

from flax import errors, nnx
from flax import linen as nn

from trainer_core.errors import UserError
from trainer_core.loss import MODEL
from trainer_core.sown import COLLECTION, sown_terms, together
from trainer_core.types import Term
from trainer_core.user_module import nested

_INITIALISING = "call its lazy_init in __init__, with arguments such as terms gives it"
_REMEDIES: dict[type[Exception], str] = {
    errors.ScopeCollectionNotFound: _INITIALISING,
    errors.ScopeParamNotFoundError: _INITIALISING,
    errors.ModifyScopeVariableError: "name each collection that changes in its call, mutable=[...]",
    errors.InvalidRngError: "give it random streams: nnx.bridge.ToNNX(..., rngs=rngs)",
}


def describing() -> Any:
    """Return a context in which each bridged Linen layer says what its parameters are for."""
    return nn.intercept_methods(_describing)


@contextlib.contextmanager
def explaining(module: nnx.Module) -> Iterator[None]:
    """Say which bridged module of this one it is that Linen complains of.

    Raises:
        UserError: it was called before it was initialised, or without what it needs.
    """
    try:
        yield
    except tuple(_REMEDIES) as error:
        frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
        called = [frame.f_locals["self"] for frame in frames if _is_bridge(frame)]
        if not called:
            raise
        paths = [keys for keys, node in nnx.iter_modules(module) if any(node is e for e in called)]
        path = "/".join(map(str, paths[0])) if paths else type(module).__qualname__
        said = str(error).split(" (http")[0].rstrip(".")
        raise UserError(
            f"{path}, a Linen module: {said}; {_REMEDIES[type(error)]}", *MODEL
        ) from error


def is_sown(path: Any, leaf: Any) -> bool:
    """Return whether a Variable stands for Linen's collection `losses`: a filter, as NNX has it."""
    try:
        return nnx.variable_name_from_type(type(leaf)) == COLLECTION
    except ValueError:
        return False  # a kind of Variable that has no counterpart in Linen


def with_sown(terms: dict[str, Term], module: nnx.Module, name: str) -> dict[str, Term]:
    """Return terms and those that a call sowed into `losses`.

    Raises:
        UserError: what was sown is no Term, or has the name of another one.
    """
    state = nnx.to_flat_state(nnx.state(module, is_sown))
    found = {COLLECTION: nested((keys, leaf.get_value()) for keys, leaf in state)}
    return together(terms, sown_terms(found, name), name)


def _describing(call: Any, args: Any, options: Any, context: Any) -> Any:
    result = call(*args, **options)
    module = context.module
    # A module that a constructor initialises by itself keeps the arrays that it expects.
    bridged = any(_is_bridge(frame) for frame, _ in traceback.walk_stack(None))
    if bridged and module.scope is not None and module.is_initializing():
        try:
            from trainer_linen.origins import describe
        except ImportError as error:
            raise UserError(
                f"{type(module).__qualname__} is a Linen module: install trainer-linen-plugin, "
                f"which knows its layers",
                *MODEL,
            ) from error
        describe(module)
    return result


def _is_bridge(frame: Any) -> bool:
    return frame.f_code is nnx.bridge.ToNNX.__call__.__code__
