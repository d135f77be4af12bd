"""Arguments and help of a command: argparse, with our errors and our layout."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence
from typing import Any, NoReturn

import attrs

from trainer_core.errors import UserError

WIDTH = 100
_LEFT = 34  # columns for what to type; what is longer stands on a line of its own

Rows = list[tuple[str, str]]


@attrs.frozen
class Help:
    """A page of help.

    Attributes:
        usage: what to type.
        about: what that does.
        sections: title to rows of (what to type, what it means).
    """

    usage: str
    about: str
    sections: list[tuple[str, Rows]]


class Parser(argparse.ArgumentParser):
    """Arguments of one command.

    Args:
        prog: `trainer train`.
        summary: what it does.
    """

    def __init__(self, prog: str, summary: str) -> None:
        super().__init__(prog=prog, add_help=False, allow_abbrev=False)
        self.summary = summary
        self.examples: Rows = []
        self.add_argument("-h", "--help", action="store_true", help="show this")
        self.add_argument(
            "--traceback", action="store_true", help="where an error came from; for plugin authors"
        )

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace | None:
        """Return the parsed arguments, or None where help was asked for, and given.

        Options and KEY=VALUE may stand in any order.
        """
        if any(each in ("-h", "--help") for each in arguments):
            print_help(self._page())
            return None
        return self.parse_intermixed_args(arguments)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; `{self.prog} --help` shows what it takes")

    def _page(self) -> Help:
        places = [action for action in self._actions if not action.option_strings]
        options = [action for action in self._actions if action.option_strings]
        shown = [(_placed(action), action.help or "") for action in places]
        sections = [
            ("arguments", shown),
            ("options", [(_option(action), action.help or "") for action in options]),
            ("examples", self.examples),
        ]
        usage = " ".join([self.prog, *(name for name, _ in shown), "[OPTIONS]"])
        return Help(usage, f"{self.summary[0].upper()}{self.summary[1:]}.", sections)


def print_help(page: Help) -> None:
    """Print a page of help, at most 100 columns wide; with emphasis on a terminal."""
    lines = [("usage", page.usage), ("", ""), ("text", page.about)]
    for title, rows in page.sections:
        if rows:
            lines += [("", ""), ("title", title)]
            lines += [(kind, text) for row in rows for kind, text in _row(*row)]
    if not sys.stdout.isatty():
        print("\n".join(f"{'usage: ' * (kind == 'usage')}{text}" for kind, text in lines))
        return
    _print_styled(lines)


def _print_styled(lines: Rows) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    for kind, text in lines:
        if kind == "row":
            console.print(Text(text[:_LEFT], "cyan") + Text(text[_LEFT:]))
        elif kind == "usage":
            console.print(Text("usage: ", "dim") + Text(text, "bold"))
        else:
            console.print(Text(text, {"title": "bold", "wide": "cyan"}.get(kind, "")))


def _row(name: str, meaning: str) -> Rows:
    lines = textwrap.wrap(meaning, WIDTH - _LEFT) or [""]
    if len(name) > _LEFT - 4:
        return [("wide", f"  {name}"), *(("row", f"{'':{_LEFT}}{line}") for line in lines)]
    first, *others = lines
    left = f"  {name}"
    return [
        ("row", f"{left:{_LEFT}}{first}".rstrip()),
        *(("row", f"{'':{_LEFT}}{line}") for line in others),
    ]


def _placed(action: argparse.Action) -> str:
    name = str(action.metavar or action.dest)
    return {"*": f"[{name} ...]", "?": f"[{name}]"}.get(str(action.nargs), name)


def _option(action: argparse.Action) -> str:
    takes: Any = action.metavar if action.nargs != 0 else None
    return ", ".join(action.option_strings) + (f" {takes}" if takes else "")
