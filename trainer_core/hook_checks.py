"""Mistakes in a plugin's class, above all in its hooks: what pluggy takes, and never calls.

pluggy registers a misspelled hook in silence, never fills a misspelled argument that has a default,
or one that is keyword-only, and takes the generator of a wrapper that is not marked as one for its
answer. All of it is found here, from the class alone.
"""

from __future__ import annotations

import dis
import inspect
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Any

import attrs

from trainer_core.errors import UserError
from trainer_core.registry import Candidate
from trainer_core.settings import check_settings
from trainer_core.suggest import did_you_mean

# Hooks by which a plugin can only watch: adding or removing it changes nothing that is trained.
WATCHING = frozenset({"start", "report", "evaluate", "save", "phase", "close"})
# What these return is not used, so that a wrapper of them need not return it.
_WITHOUT_ANSWER = WATCHING - {"evaluate"}


@attrs.frozen
class Implementation:
    """A method that is marked with `@hookimpl`.

    Attributes:
        hook: which it answers.
        function: as it is defined; a callable object where it is no function.
        options: as pluggy's marker keeps them.
        is_static: whether it takes no `self`.
    """

    hook: str
    function: Any
    options: dict[str, Any]
    is_static: bool

    @property
    def arguments(self) -> dict[str, inspect.Parameter]:
        found = dict(inspect.signature(self.function).parameters)
        if not self.is_static and found:
            del found[next(iter(found))]
        return found


def implementations(cls: type[Any]) -> Iterator[Implementation]:
    """Yield the hooks that a class answers."""
    for name in dir(cls):
        found = inspect.getattr_static(cls, name, None)
        function = getattr(found, "__func__", found)
        options = getattr(function, "trainer_impl", None)
        if isinstance(options, dict):
            is_static = isinstance(found, staticmethod)
            yield Implementation(options.get("specname") or name, function, options, is_static)


def only_watches(cls: type[Any]) -> bool:
    """Whether a plugin of this class can change nothing that is trained."""
    return {each.hook for each in implementations(cls)} <= WATCHING


def check_class(cls: type[Any], candidate: Candidate, where: str) -> list[str]:
    """Refuse a class whose hooks pluggy would misunderstand, that answers none of its slot's, or
    whose settings cannot be written down.

    Args:
        cls: the class of a plugin.
        candidate: what names it.
        where: the table and its place, to begin an error with.

    Returns:
        What the person should know, though nothing need be wrong.

    Raises:
        UserError: what is wrong, with the plugin, the hook and what would be right.
    """
    found = list(implementations(cls))
    answered = [each.hook for each in found]
    notices = []
    for each in found:
        what = f"{where}: the hook {each.hook} of {named(candidate)}"
        notices += _check_name_and_arguments(each, what, candidate)
        _check_kind(each, what)
    missing = [hook for hook in candidate.slot.hooks if hook not in answered]
    if missing:
        raise UserError(
            f"{where}: {candidate.target} answers no {' and no '.join(missing)}; "
            f"a plugin for [{candidate.slot.name}] defines it with @trainer_core.hookimpl"
        )
    if not answered:
        raise UserError(
            f"{where}: {candidate.target} answers no hook; mark one with @trainer_core.hookimpl"
        )
    check_settings(cls, f"{where}: {named(candidate)}")
    return notices


def named(candidate: Candidate) -> str:
    """Return what a plugin is called in an error: its class, and its package and version."""
    package = f" ({candidate.origin})" if candidate.distribution else ""
    return f"{candidate.target}{package}"


def specifications() -> dict[str, tuple[str, ...]]:
    """Return the arguments of each hook, in the order of a run."""
    from trainer_core.hookspecs import TrainerSpec

    return {
        name: tuple(inspect.signature(spec).parameters)[1:]
        for cls in reversed(TrainerSpec.__mro__)
        for name, spec in vars(cls).items()
        if hasattr(spec, "trainer_spec")
    }


def _check_name_and_arguments(each: Implementation, what: str, candidate: Candidate) -> list[str]:
    hooks = specifications()
    if each.hook not in hooks:
        if each.options.get("optionalhook"):
            return []
        raise UserError(
            f"{what}: there is no such hook{did_you_mean(each.hook, hooks)} in "
            f"{_this()}{_asked_for(candidate)}; there are: {', '.join(hooks)}"
        )
    if not inspect.isroutine(each.function):
        raise UserError(
            f"{what} is a {type(each.function).__name__}, not a plain method, and pluggy would "
            f"not call it; call that from a method"
        )
    known = hooks[each.hook]
    first = next(iter(inspect.signature(each.function).parameters), "")
    if not each.is_static and (not first or first in known):
        raise UserError(f"{what} takes no self: its first argument is the plugin")
    notices = []
    for name, argument in each.arguments.items():
        if argument.kind in (argument.VAR_POSITIONAL, argument.VAR_KEYWORD):
            raise UserError(
                f"{what} takes {argument}, which no hook fills; name what it wants: "
                f"{', '.join(known)}"
            )
        if argument.kind == argument.KEYWORD_ONLY:
            raise UserError(
                f"{what} takes {name} by keyword only, and hooks are not called so; leave out the *"
            )
        if name in known:
            continue
        hint = did_you_mean(name, known)
        told = (
            f"{what} takes {name!r}{hint}, which that hook has not in {_this()}"
            f"{_asked_for(candidate)}"
        )
        # With a default it is how a plugin asks for what only another version of the core gives.
        if argument.default is argument.empty or hint:
            raise UserError(f"{told}; it has: {', '.join(known)}")
        notices.append(f"{told}: it is always {argument.default!r} there")
    return notices


def _check_kind(each: Implementation, what: str) -> None:
    if not inspect.isroutine(each.function):
        return
    is_generator = inspect.isgeneratorfunction(each.function)
    if each.options.get("hookwrapper"):
        raise UserError(f"{what}: hookwrapper=True is pluggy's old way; write wrapper=True")
    if is_generator and not each.options.get("wrapper"):
        raise UserError(f"{what} yields, as a wrapper does: mark it @hookimpl(wrapper=True)")
    if each.options.get("wrapper"):
        if not is_generator:
            raise UserError(
                f"{what} is marked wrapper=True, and does not yield: `answer = yield` gives what "
                f"it wraps"
            )
        if each.hook not in _WITHOUT_ANSWER and not _returns_something(each.function):
            raise UserError(
                f"{what} is a wrapper that returns nothing, so that the answer it wraps is lost: "
                f"end it with `return answer`"
            )


def _returns_something(function: Callable[..., Any]) -> bool:
    """Whether a function has a `return` of anything but None; read from its bytecode."""
    before = None
    for each in dis.get_instructions(inspect.unwrap(function)):
        if each.opname in ("RETURN_VALUE", "RETURN_CONST"):
            given = each if each.opname == "RETURN_CONST" else before
            if given is None or not given.opname.endswith("_CONST") or given.argval is not None:
                return True
        before = each
    return False


def _this() -> str:
    try:
        return f"trainer-core {version('trainer-core')}"
    except PackageNotFoundError:
        return "trainer-core"


def _asked_for(candidate: Candidate) -> str:
    """Which trainer-core the plugin's package was made for, where its metadata says so."""
    if candidate.distribution is None:
        return ""
    try:
        wanted = requires(candidate.distribution) or []
    except PackageNotFoundError:
        return ""
    mine = [each for each in wanted if each.replace("_", "-").startswith("trainer-core")]
    return f" ({candidate.origin} asks for {mine[0]})" if mine else ""
