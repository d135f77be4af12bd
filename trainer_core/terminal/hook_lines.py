"""`trainer train --trace-hooks`: a line for each hook call."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from trainer_core.terminal.output import is_terminal, say
from trainer_core.terminal.page import terminal_console, wrapped

if TYPE_CHECKING:
    from trainer_core.hook_trace import HookCall, Part

WITH_ANSWERS = ("restore", "describe_optimizer", "evaluate")  # which may be None
_TIED = "\N{NO-BREAK SPACE}"  # between a name and its time


def show_call(call: HookCall) -> None:
    """Print a hook call; a live view on the terminal lets it pass above itself.

    As in `hook step  3.1 ms  [plugins.norm] 0.1 around [step] gradient 3.0`: one line, which only a
    terminal that is narrower wraps.
    """
    if not call.is_main:
        return
    what, who = _in_words(call)
    lines, left = [who], len(what) + 2
    if is_terminal():
        width = terminal_console().width
        if max(map(len, who.split(" "))) > width - left:
            what, left = f"{what}\n  ", 4
        lines = wrapped(who, width - left)
    # In one piece: a live view redraws itself between two.
    say(f"{what}  " + f"\n{'':<{left}}".join(lines).replace(_TIED, " "))


def show_call_as_json(call: HookCall) -> None:
    """Print it as a JSON object."""
    if not call.is_main:
        return
    parts = [
        {
            "plugin": part.plugin,
            "role": "wrapper" if part.wraps else "answer",
            "ms": round(1000 * part.seconds, 3),
            "answered": part.answered,
        }
        for part in call.parts
    ]
    named = {"event": "hook", "hook": call.hook, "about": call.about}
    found = {**named, "ms": round(1000 * call.seconds, 3)}
    error = {} if call.error is None else {"error": _raised(call.error)}
    say(json.dumps({**found, "called": parts, **error}))


def short_name(plugin: str) -> str:
    """Return a plugin's name in a run, without whence it comes: `[optimizer] adamw`."""
    name = re.sub(r" \([^()]*\)$", "", plugin)
    doubled = re.fullmatch(r"(\[plugins\.(.+)\]) \2", name)
    return doubled[1] if doubled else name


def _in_words(call: HookCall) -> tuple[str, str]:
    """What was called, and by whom it was answered."""
    around = [part for part in call.parts if part.wraps]
    within = [part for part in call.parts if not part.wraps]
    answers = ", ".join(_part(call.hook, part) for part in within)
    if around and len(within) > 1:
        answers = f"({answers})"
    named = " around ".join([*(_part(call.hook, part) for part in around), answers])
    raised = "" if call.error is None else f"  raised {_raised(call.error)}"
    what = f"{call.hook} {call.about}".rstrip()
    return f"hook {what:<18} {1000 * call.seconds:>9.2f} ms", f"{named}{raised}"


def _part(hook: str, part: Part) -> str:
    silent = hook in WITH_ANSWERS and not part.answered
    answer = f":{_TIED}None" if silent else ""
    return f"{short_name(part.plugin)}{_TIED}{1000 * part.seconds:.2f}{answer}"


def _raised(error: BaseException) -> str:
    lines: Sequence[str] = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}".rstrip(": ")
