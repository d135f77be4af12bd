"""Tell of each hook call of a run: who answered, in which order, and how long each took."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any

import attrs
import pluggy


@attrs.define
class Part:
    """One plugin's part in a hook call.

    Attributes:
        plugin: its name in the run: `[optimizer] adamw (trainer-core 0.1.0)`.
        wraps: whether it is a wrapper of those that come after it.
        seconds: its own time, without that of what it wraps.
        answered: whether it returned something.
    """

    plugin: str
    wraps: bool
    seconds: float = 0.0
    answered: bool = False

    @contextmanager
    def timed(self) -> Iterator[None]:
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - begun


@attrs.frozen
class HookCall:
    """A hook call that has ended.

    Attributes:
        about: which phase it tells of, or which step.
        seconds: from its beginning to its end.
        parts: who was called, in that order; the core's own seams are left out.
        error: what it raised.
    """

    hook: str
    about: str
    seconds: float
    parts: tuple[Part, ...]
    is_main: bool
    error: BaseException | None = None


def trace(manager: pluggy.PluginManager, tell: Callable[[HookCall], None]) -> None:
    """Let `tell` hear of each hook call that the plugins of a manager answer from now on."""
    # A hook may call another: the innermost is last.
    under_way: list[tuple[float, list[Part]]] = []

    def before(hook: str, impls: Any, arguments: Any) -> None:
        under_way.append((time.perf_counter(), []))

    def after(outcome: Any, hook: str, impls: Any, arguments: Any) -> None:
        begun, parts = under_way.pop()
        seconds = time.perf_counter() - begun
        if impls:
            about = str(arguments.get("name", arguments.get("step", "")))
            is_main = arguments["run"].is_main
            tell(HookCall(hook, about, seconds, tuple(parts), is_main, outcome.exception))

    def begin(plugin: str, wraps: bool) -> Part:
        part = Part(plugin, wraps)
        under_way[-1][1].append(part)
        return part

    for impl in implementations(manager):
        if not is_seam(impl):
            timed = _timed_wrapper if impl.wrapper else _timed
            # What pluggy calls; the arguments that it passes were read before.
            object.__setattr__(
                impl, "function", timed(impl.function, functools.partial(begin, impl.plugin_name))
            )
    manager.add_hookcall_monitoring(before, after)


def implementations(manager: pluggy.PluginManager) -> Iterator[pluggy.HookImpl]:
    """Yield what answers the hooks, hook by hook in the order of a run, as they are called."""
    for caller in vars(manager.hook).values():
        if isinstance(caller, pluggy.HookCaller):
            yield from reversed(caller.get_hookimpls())


def is_seam(impl: pluggy.HookImpl) -> bool:
    """Whether it only fits what plugins answer to each other."""
    return impl.plugin_name.startswith("core.step-seam")


def _timed(function: Callable[..., Any], begin: Callable[[bool], Part]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        part = begin(False)
        with part.timed():
            answer = function(*arguments, **named)
        part.answered = answer is not None
        return answer

    return call


def _timed_wrapper(
    function: Callable[..., Any], begin: Callable[[bool], Part]
) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Generator[None, Any, Any]:
        part = begin(True)
        wrapper = function(*arguments, **named)
        with part.timed():
            try:
                next(wrapper)
            except StopIteration:
                return None  # it did not yield: pluggy says so
        try:
            answer = yield
        except BaseException as error:
            go_on = functools.partial(wrapper.throw, error)
        else:
            go_on = functools.partial(wrapper.send, answer)
        with part.timed():
            try:
                go_on()
            except StopIteration as end:
                part.answered = end.value is not None
                return end.value
        raise RuntimeError(f"{part.plugin} wraps a hook, and yields more than once")

    return call
