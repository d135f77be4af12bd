"""From the config's `module` and `arguments` to a constructor of NNX modules."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from flax import nnx

from trainer_core.user_module import load_target, signature_of


def constructor(path: str, arguments: Mapping[str, Any]) -> Callable[[nnx.Rngs], Any]:
    """Return `make(rngs)`, which calls the class or function at an import path.

    Args:
        path: `package.module:Class`.
        arguments: its keyword arguments; `rngs` is added where it has such a parameter.

    Raises:
        UserError: there is no such class, or it does not take these arguments.
    """
    target = load_target(path, arguments, given=("rngs",), kind=nnx.Module)
    takes_rngs = _takes_rngs(target)

    def make(rngs: nnx.Rngs) -> Any:
        streams = {"rngs": rngs} if takes_rngs else {}
        return target(**arguments, **streams)

    return make


def _takes_rngs(target: Any) -> bool:
    parameters = signature_of(target)
    if parameters is None or "rngs" in parameters:
        return True
    return any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values())
