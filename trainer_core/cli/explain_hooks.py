"""`trainer explain hooks`: for each hook, who is called, in which order, and whence that comes."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import attrs

from trainer_core.registry import PLUGINS, Candidate
from trainer_core.terminal.output import say
from trainer_core.terminal.page import Page

if TYPE_CHECKING:
    from trainer_core.config import Config


@attrs.frozen
class Called:
    """Who is called for a hook.

    Attributes:
        plugin: `[optimizer] adamw`, or what of the core.
        role: "wrapper" of those that come after it, or "answer".
        candidate: its class, and the package that it comes from.
    """

    plugin: str
    role: str
    candidate: Candidate


def explain(config: Config, as_json: bool) -> None:
    """Print the hooks in the order of a run; nothing is built, and jax is not imported.

    Args:
        config: a resolved one.
        as_json: print one JSON object.
    """
    from trainer_core.hookspecs import TrainerSpec

    called = by_hook(config)
    specs = {name: getattr(TrainerSpec, name) for name in called}
    if as_json:
        say(json.dumps({"hooks": [_as_json(*each, specs) for each in called.items()]}, indent=2))
        return
    page = Page()
    rows = []
    for hook, found in called.items():
        kind = "one" if _has_one_answer(specs[hook]) else "every"
        for index, each in enumerate(found):
            first = (hook, kind) if index == 0 else ("", "")
            # An import path stands under `from`: twice, it would not fit.
            name = each.plugin if each.candidate.distribution else each.plugin.partition(" ")[0]
            wraps = " around" if each.role == "wrapper" else ""
            rows.append((*first, str(index + 1), name + wraps, each.candidate.origin))
        if not found:
            rows.append((hook, kind, "", "nobody", ""))
    page.table(("hook", "answers", "", "called, in this order", "from"), rows)
    page.line()
    page.rows(
        [
            ("one", "the slot's own implementation answers; around it: plugins that wrap it"),
            ("every", "each plugin of the run may answer"),
            ("trainer train --trace-hooks", "prints each call of a run, with its time"),
        ]
    )


def by_hook(config: Config) -> dict[str, list[Called]]:
    """Return who is called for each hook, by hook, both in the order of a run.

    Raises:
        UserError: plugins that do not fit the hooks, or each other.
    """
    from trainer_core.hook_checks import specifications
    from trainer_core.hooks import plugin_manager

    hooks = plugin_manager(config).hook
    return {name: list(_called(config, getattr(hooks, name))) for name in specifications()}


def _called(config: Config, caller: Any) -> Iterator[Called]:
    from trainer_core.hook_trace import is_seam
    from trainer_core.terminal.hook_lines import short_name

    chosen = {id(each.plugin): each.candidate for each in config.chosen.values()}
    for impl in reversed(caller.get_hookimpls()):
        if is_seam(impl):
            continue
        role = "wrapper" if impl.wrapper else "answer"
        candidate = chosen.get(id(impl.plugin))
        if candidate is not None:
            yield Called(short_name(impl.plugin_name), role, candidate)
        else:
            cls, name = type(impl.plugin), impl.plugin_name
            target = f"{cls.__module__}:{cls.__qualname__}"
            core = Candidate(PLUGINS, name, target, "trainer-core", version("trainer-core"))
            yield Called(name, role, core)


def _as_json(hook: str, called: list[Called], specs: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "hook": hook,
        "answers": "one" if _has_one_answer(specs[hook]) else "every",
        "arguments": list(inspect.signature(specs[hook]).parameters)[1:],
        "called": [
            {
                "plugin": each.plugin,
                "role": each.role,
                "distribution": each.candidate.distribution,
                "version": each.candidate.version,
                "target": each.candidate.target,
            }
            for each in called
        ],
    }


def _has_one_answer(spec: Any) -> bool:
    return bool(spec.trainer_spec["firstresult"])
