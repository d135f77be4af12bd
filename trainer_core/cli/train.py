"""`trainer train`: train, or go on."""

from __future__ import annotations

import contextlib
from argparse import Namespace
from typing import TYPE_CHECKING

import attrs

from trainer_core.cli.settings import add_settings, split
from trainer_core.terminal.output import say
from trainer_core.terminal.page import Page

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from trainer_core.cli.failures import Context
    from trainer_core.cli.parsing import Parser
    from trainer_core.config import Config
    from trainer_core.loop import Result

_NOTHING = "stopped before the first step; nothing was changed"  # then why, where that is known


def configure(parser: Parser) -> None:
    """Declare the arguments."""
    add_settings(parser)
    parser.add_argument(
        "--accept-changes",
        action="store_true",
        help="go on with a run though its config has changed",
    )
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object a line: each reported step, then how it ended",
    )
    parser.add_argument(
        "--trace-hooks",
        action="store_true",
        help="print each hook call: how long it took, and each plugin's part in that, in ms",
    )
    parser.examples = [
        ("trainer train", "the tiny preset, on Python's own standard library"),
        ("trainer train run.steps=2000", "the same for longer"),
        ("trainer train recipe.toml", "what a recipe says"),
        ("trainer train optimizer.use=sgd", "with one key set otherwise"),
        ("trainer explain config", "every key that can be set"),
    ]


def run(arguments: Namespace, context: Context) -> int:
    """Train, and show how it ended."""
    style = "json" if arguments.json else "quiet" if arguments.quiet else ""
    try:
        config, result = _train(arguments, style, context)
    except KeyboardInterrupt:
        if style == "json":
            say('{"event": "done", "step": 0, "stopped": "interrupted"}')
        elif not style:
            Page().line(_NOTHING)
        return 0
    # The run itself is done and saved; only its sample can be cut off.
    with contextlib.suppress(KeyboardInterrupt):
        _show(config, result, arguments.settings)
    return 0


def _train(arguments: Namespace, style: str, context: Context) -> tuple[Config, Result]:
    from trainer_core.config import load_config
    from trainer_core.defaults.progress import Progress
    from trainer_core.loop import train
    from trainer_core.signals import interruptible
    from trainer_core.terminal import hook_lines

    recipe, overrides = split(arguments.settings)
    if style:
        overrides.append(f"plugins.progress.style={style}")
    # Python wraps what a signal raises while a class is made: an import is not cut off, but left.
    say_imports = {"": _say_imports, "json": _note_imports, "quiet": _say_nothing}[style]
    config = interruptible(lambda: load_config(recipe, overrides, say_imports))
    if arguments.trace_hooks:
        show = hook_lines.show_call_as_json if style == "json" else hook_lines.show_call
        config = attrs.evolve(config, trace=show)
    context.directory = config.directory
    progress = config.chosen.get("plugins.progress")
    shown = progress.plugin if progress and isinstance(progress.plugin, Progress) else None
    is_main = not config.distributed.process  # as far as is known before the processes meet
    if not style and is_main:
        page = Page()
        for notice in config.notices:
            page.line(("note: ", "yellow"), notice)
    try:
        if shown is not None and is_main:
            shown.display.phase("starting")
        return config, train(config, arguments.accept_changes)
    finally:
        if shown is not None:
            shown.close()


def _say_imports(found: Mapping[str, Path]) -> None:
    """Before any of it runs: the recipe may be a stranger's."""
    from trainer_core.imports import from_here

    lines = [f"{path} from {from_here(file)}" for path, file in found.items()]
    Page().rows([("imports", "\n".join(lines))])


def _note_imports(found: Mapping[str, Path]) -> None:
    from trainer_core.cli.reading import say_imports

    say_imports(found)


def _say_nothing(found: Mapping[str, Path]) -> None:
    return


def _show(config: Config, result: Result, settings: list[str]) -> None:
    from trainer_core.cli import closing

    if result.program is not None and not result.program.run.is_main:
        return
    progress = config.table.get("plugins", {}).get("progress") or {}
    style = progress.get("style", "auto")
    if style == "json":
        say(closing.as_json(config, result))
    elif style != "quiet":
        if result.program is None:
            Page().line(f"{_NOTHING} ({result.stopped})")
        else:
            closing.show(config, result, settings)
