"""What is to go from the hook list: said for a while to whoever still uses it, by plugin."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import attrs
import pluggy


class HookDeprecation(FutureWarning):
    """A hook, or an argument of one, that a plugin should no longer use.

    As `@hookspec(warn_on_impl=HookDeprecation(...))` it deprecates a hook, as
    `warn_on_impl_args={"name": HookDeprecation(...)}` one of its arguments.

    Args:
        instead: what to write, such as "answer `save`".
        since: the first version of trainer-core in which it is deprecated.
        gone: the first in which it will not be there.
    """

    def __init__(self, instead: str, *, since: str, gone: str) -> None:
        super().__init__(f"deprecated since trainer-core {since}, gone in {gone}; {instead}")
        self.gone = gone


class PluginDeprecation(FutureWarning):
    """The warning about one plugin; Python shows it once, with the line of its hook."""


@attrs.frozen
class Use:
    """A plugin's use of what is deprecated."""

    plugin: str
    what: str
    said: HookDeprecation
    function: Callable[..., object]

    def warn(self) -> None:
        code = self.function.__code__
        warnings.warn_explicit(
            f"{self.plugin} {self.what}, which is {self.said}",
            PluginDeprecation,
            code.co_filename,
            code.co_firstlineno,
            module=self.function.__module__,
        )


@contextmanager
def naming_plugins(manager: pluggy.PluginManager) -> Iterator[None]:
    """Warn of each plugin that is registered within this, instead of as pluggy does.

    pluggy warns with what stands in the hook list, and that names no plugin.
    """
    before = set(manager.get_plugins())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HookDeprecation)
        yield
    for plugin in manager.get_plugins() - before:
        for use in uses(manager, plugin):
            use.warn()


def uses(manager: pluggy.PluginManager, plugin: object) -> Iterator[Use]:
    """Yield what a registered plugin uses of the hook list that is deprecated."""
    for caller in manager.get_hookcallers(plugin) or ():
        spec = caller.spec
        if spec is None:
            continue
        for impl in caller.get_hookimpls():
            if impl.plugin is not plugin:
                continue
            if isinstance(spec.warn_on_impl, HookDeprecation):
                answers = f"answers the hook `{caller.name}`"
                yield Use(impl.plugin_name, answers, spec.warn_on_impl, impl.function)
            for name, said in (spec.warn_on_impl_args or {}).items():
                if name in impl.argnames and isinstance(said, HookDeprecation):
                    takes = f"takes `{name}` in the hook `{caller.name}`"
                    yield Use(impl.plugin_name, takes, said, impl.function)
