"""Arguments and help of a command: argparse, with our errors and our layout."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from typing import NoReturn

import attrs

from trainer_core.errors import UserError
from trainer_core.suggest import in_tables
from trainer_core.terminal.page import Page, Rows

_LEFT = 34  # columns for what to type


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

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace | None:
        """Return the parsed arguments, or None where help was asked for, and given.

        Options and other arguments may stand in any order.
        """
        self.add_argument(
            "--traceback", action="store_true", help="show where an error came from in the code"
        )
        self.add_argument("-h", "--help", action="store_true", help="show this")
        if any(each in ("-h", "--help") for each in arguments):
            print_help(self._page())
            return None
        return self.parse_intermixed_args(arguments)

    def error(self, message: str) -> NoReturn:
        _, _, unknown = message.partition("unrecognized arguments: --")
        key = unknown.partition(" ")[0].partition("=")[0]
        where = in_tables(key) if key else ""
        if "." in key or where:
            message += f" (settings take no dashes: {key}=VALUE){where}"
        raise UserError(f"{message}; `{self.prog} --help` shows what it takes")

    def _page(self) -> Help:
        places = [action for action in self._actions if not action.option_strings]
        options = [action for action in self._actions if action.option_strings]
        sections: list[tuple[str, Rows]] = [
            ("arguments", [(_name(action), action.help or "") for action in places]),
            ("options", [(_option(action), action.help or "") for action in options]),
            ("examples", self.examples),
        ]
        usage = " ".join([self.prog, *map(_placed, places), "[OPTIONS]"])
        return Help(usage, f"{self.summary[0].upper()}{self.summary[1:]}.", sections)


def print_help(help: Help) -> None:
    """Print a page of help, at most 100 columns wide."""
    page = Page()
    page.line(("usage: ", "dim"), (help.usage, "bold"))
    page.line()
    page.line(help.about)
    for title, rows in help.sections:
        if rows:
            page.line()
            page.line((title, "bold"))
            page.rows(rows, indent=2, style="cyan", left=_LEFT)


def _name(action: argparse.Action) -> str:
    return str(action.metavar or action.dest)


def _placed(action: argparse.Action) -> str:
    name = _name(action)
    shown = {"*": f"[{name} ...]", "?": f"[{name}]", "+": f"{name} [{name} ...]"}
    return shown.get(str(action.nargs), name)


def _option(action: argparse.Action) -> str:
    takes = f" {action.metavar}" if action.metavar else ""
    return ", ".join(action.option_strings) + takes


def at_least(least: int) -> Callable[[str], int]:
    """Return what reads a whole number from an argument."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None
        if number < least:
            raise argparse.ArgumentTypeError(f"{text} is less than {least}")
        return number

    return read


def number_at_least(least: float) -> Callable[[str], float]:
    """Return what reads a number from an argument."""

    def read(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no number") from None
        if not least <= number < math.inf:
            raise argparse.ArgumentTypeError(f"{text} is not a number from {least:g} upwards")
        return number

    return read
