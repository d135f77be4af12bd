"""A user's own module as a model: what is checked, and shown, of it in every framework."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from trainer_core.errors import UserError, first_line
from trainer_core.imports import check_makes, load_object
from trainer_core.loss import MODEL, described
from trainer_core.suggest import did_you_mean
from trainer_core.types import ParamInfo, Term

POSITIONAL_OR_KEYWORD = inspect.Parameter.POSITIONAL_OR_KEYWORD
KEYWORD_ONLY = inspect.Parameter.KEYWORD_ONLY

Keys = TypeVar("Keys", bound=Hashable)


def load_target(
    path: str, arguments: Mapping[str, Any], given: Collection[str], kind: type[Any]
) -> Any:
    """Return the class or function at an import path, after a look at its arguments.

    Args:
        path: `package.module:Class`, the `module` of the `[model]` table.
        arguments: the keyword arguments that the table gives.
        given: parameters that are no business of the user's: the plugin or the framework gives
            them.
        kind: the framework's class of modules.

    Raises:
        UserError: there is no such class, it does not take these arguments, or it is of a package
            and not known to make a module.
    """
    target = load_object(path, "[model] module")
    if not callable(target):
        raise UserError(
            f'[model] module = "{path}": {target!r} is not a class or a function', *MODEL
        )
    check_makes(target, kind, path, "[model] module")
    parameters = signature_of(target)
    if parameters is not None:
        _check_arguments(path, parameters, arguments, given)
    return target


def signature_of(target: Any) -> dict[str, inspect.Parameter] | None:
    """Return the parameters of a function, or of a class's constructor; None: unknown."""
    # The signature of a class may be that of its metaclass, which takes anything.
    called = target.__init__ if inspect.isclass(target) else target
    try:
        parameters = dict(inspect.signature(called).parameters)
    except (TypeError, ValueError):
        return None
    if inspect.isclass(target):
        parameters.pop("self", None)
    return parameters


def takes(target: Any, name: str) -> bool:
    """Return whether a function, or a class's constructor, has a parameter of this name."""
    return name in (signature_of(target) or {})


def method_of(module_type: type[Any], name: str) -> Any:
    """Return a module's method; None where it has none of this name."""
    method = getattr(module_type, name, None)
    return method if callable(method) else None


def no_terms(name: str) -> UserError:
    return UserError(
        f"{name} has no method terms(self, batch): write one that returns "
        f'{{"loss": Term(sum, weight)}}, or give as_model(..., terms=...)',
        *MODEL,
    )


def checked_terms(found: Any, name: str) -> dict[str, Term]:
    """Return what `terms` returned as a dict; name the module's class in what the core refuses."""
    if not isinstance(found, Mapping):
        raise UserError(f"{name}.terms returned {described(found)}; {TERM_REMEDY}", *MODEL)
    for term, value in found.items():
        if not isinstance(value, Term):
            raise UserError(
                f"{name}.terms: the term {term!r} is {described(value)}; {TERM_REMEDY}", *MODEL
            )
    return dict(found)


TERM_REMEDY = (
    "return {name: Term(sum, weight)}, with a sum over examples and the weight to divide it "
    "by: the trainer divides once, over all microbatches and devices"
)


def carried(
    known: Iterable[tuple[Keys, ParamInfo]],
    arrays: Mapping[Keys, Any],
    name: str,
    creating: str,
) -> Iterator[tuple[Keys, jax.Array]]:
    """Yield the arrays that go on to the next step, in the dtypes in which they are kept.

    Args:
        known: where each array is, and what it was at first.
        arrays: what the module left.
        name: of the module's class.
        creating: what to do about an array that did not exist at first.

    Raises:
        UserError: an array has another shape than at first, is gone, or did not exist then.
    """
    left = dict(arrays)
    for keys, info in known:
        if keys not in left:
            raise UserError(f"{name}.terms removed {info.path}, which is saved", *MODEL)
        array = jnp.asarray(left.pop(keys))
        if array.shape != info.shape:
            raise UserError(
                f"{name}.terms changed the shape of {info.path} from {info.shape} to {array.shape}",
                *MODEL,
            )
        yield keys, array.astype(info.dtype)
    for keys in left:
        path = "/".join(map(str, keys)) if isinstance(keys, tuple) else keys
        raise UserError(f"{name}.terms created {path}: {creating}", *MODEL)


def without_a_mesh() -> Any:
    """Return a context in which names in a Linen box are names: under a mesh that is set, Linen
    takes them for names of mesh axes."""
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ()))


def module_summary(name: str, infos: Iterable[ParamInfo]) -> dict[str, str]:
    """Return what to show of a user's module at the start of a run."""
    summary = {"module": name}
    unknown = [info.path for info in infos if info.kind == "other"]
    if unknown:
        shown = ", ".join(unknown[:5]) + (", …" if len(unknown) > 5 else "")
        verb = "parameter carries" if len(unknown) == 1 else "parameters carry"
        summary["of no known kind"] = f"{len(unknown)} {verb} no ParamInfo: {shown}"
    return summary


def nested(leaves: Iterable[tuple[tuple[Any, ...], Any]]) -> dict[str, Any]:
    """Return nested dicts with string keys from pairs of a path's keys and a leaf."""
    tree: dict[str, Any] = {}
    for keys, leaf in leaves:
        *parents, name = map(str, keys)
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def building_raised(error: Exception) -> str:
    return f"building the model raised {first_line(error)}"


def _check_arguments(
    path: str,
    parameters: dict[str, inspect.Parameter],
    arguments: Mapping[str, Any],
    given: Collection[str],
) -> None:
    variadic = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    names = [
        name
        for name, each in parameters.items()
        if name not in given and each.kind in (POSITIONAL_OR_KEYWORD, KEYWORD_ONLY)
    ]
    for name in arguments:
        if name not in names and not variadic:
            raise UserError(
                f"[model] arguments: {path} has no argument {name!r}{did_you_mean(name, names)}; "
                f"it takes: {', '.join(names) or 'none'}",
                "model.arguments",
            )
    missing = [
        name
        for name in names
        if parameters[name].default is inspect.Parameter.empty and name not in arguments
    ]
    if missing:
        raise UserError(
            f"[model] arguments: {path} needs {', '.join(missing)}; write "
            f"arguments = {{{missing[0]} = ...}}",
            *MODEL,
            "model.arguments",
        )
