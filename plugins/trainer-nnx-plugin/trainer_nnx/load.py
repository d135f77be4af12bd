"""From the config's `module` and `arguments` to a constructor, with errors made for its author."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from flax import nnx

from trainer_core.errors import UserError
from trainer_core.imports import load_object
from trainer_core.suggest import did_you_mean

POSITIONAL_OR_KEYWORD = inspect.Parameter.POSITIONAL_OR_KEYWORD
KEYWORD_ONLY = inspect.Parameter.KEYWORD_ONLY


def constructor(path: str, arguments: Mapping[str, Any]) -> Callable[[nnx.Rngs], Any]:
    """Return `make(rngs)`, which calls the class or function at an import path.

    Args:
        path: `package.module:Class`.
        arguments: its keyword arguments; `rngs` is added where it has such a parameter.

    Raises:
        UserError: there is no such class, or it does not take these arguments.
    """
    target = load_object(path, "[model] module")
    if not callable(target):
        raise UserError(f'[model] module = "{path}": {target!r} is not a class or a function')
    names = _check(path, target, arguments)
    takes_rngs = names is None or "rngs" in names

    def make(rngs: nnx.Rngs) -> Any:
        streams = {"rngs": rngs} if takes_rngs else {}
        return target(**arguments, **streams)

    return make


def _check(path: str, target: Any, arguments: Mapping[str, Any]) -> list[str] | None:
    """Return the names of the target's parameters; None where any is taken or none is known."""
    # The signature of a class of NNX is that of its metaclass: it takes anything.
    called = target.__init__ if inspect.isclass(target) else target
    try:
        parameters = dict(inspect.signature(called).parameters)
    except (TypeError, ValueError):
        return None
    if inspect.isclass(target):
        parameters.pop("self", None)
    variadic = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    names = [name for name in parameters if name != "rngs"]
    for name in arguments:
        if name not in names and not variadic:
            raise UserError(
                f"[model] arguments: {path} has no argument {name!r}{did_you_mean(name, names)}; "
                f"it takes: {', '.join(names) or 'none'}"
            )
    missing = [
        name
        for name in names
        if parameters[name].default is inspect.Parameter.empty
        and parameters[name].kind in (POSITIONAL_OR_KEYWORD, KEYWORD_ONLY)
        and name not in arguments
    ]
    if missing:
        raise UserError(
            f"[model] arguments: {path} needs {', '.join(missing)}; write "
            f"arguments = {{{missing[0]} = ...}}"
        )
    return None if variadic else list(parameters)
