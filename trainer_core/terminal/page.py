"""Aligned text, at most 100 columns wide; with emphasis on a terminal, plain elsewhere.

rich is imported only for a terminal.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TypeAlias

from trainer_core.terminal.output import Stdout, is_terminal, say

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

WIDTH = 100
Part: TypeAlias = str | tuple[str, str]  # text, or text and its style
Rows: TypeAlias = Sequence[tuple[str, str]]


def terminal_console() -> Console:
    """Return a console on a terminal."""
    from rich.console import Console

    return Console(file=Stdout(), force_terminal=True, highlight=False)  # type: ignore[arg-type]


class Page:
    """Text on stdout.

    Args:
        console: where to print; by default one of its own on a terminal, else plain stdout.
    """

    def __init__(self, console: Console | None = None) -> None:
        if console is None and is_terminal():
            console = terminal_console()
        self._console = console

    @property
    def width(self) -> int:
        return min(WIDTH, self._console.width) if self._console is not None else WIDTH

    def line(self, *parts: Part) -> None:
        """Print one line, as it is: it is not wrapped."""
        if self._console is None:
            say("".join(part if isinstance(part, str) else part[0] for part in parts).rstrip())
        else:
            self._console.print(assembled(parts), soft_wrap=True)

    def rows(
        self, rows: Rows, indent: int = 0, style: str = "dim", left: int | None = None
    ) -> None:
        """Print labels and what belongs to them, wrapped below itself.

        Args:
            rows: (label, value); a newline in a value begins a new line.
            indent: spaces before a label.
            style: of the labels.
            left: columns for a label, by default as many as the longest needs; a longer one
                stands on a line of its own.
        """
        column = left if left is not None else max((len(label) for label, _ in rows), default=0) + 2
        for label, value in rows:
            lines = wrapped(value, self.width - indent - column)
            if len(label) > column - 2:
                self.line(" " * indent, (label, style))
                label = ""
            for line in lines:
                self.line(" " * indent, (f"{label:<{column}}", style), line)
                label = ""

    def table(self, head: Sequence[str], rows: Iterable[Sequence[str]], indent: int = 0) -> None:
        """Print columns under their heads; the last one is wrapped.

        Args:
            head: one word for each column.
            rows: as many texts in each.
            indent: spaces before each line.
        """
        listed = [tuple(row) for row in rows]
        widths = [
            max(len(row[column]) for row in [tuple(head), *listed]) + 2
            for column in range(len(head))
        ]
        last = max(20, self.width - indent - sum(widths[:-1]))
        self.line(" " * indent, (_columns(head, widths), "dim"))
        for row in listed:
            lines = wrapped(row[-1], last)
            self.line(" " * indent, _columns([*row[:-1], lines[0]], widths))
            for line in lines[1:]:
                self.line(" " * (indent + sum(widths[:-1])), line)


def assembled(parts: Iterable[Part]) -> Text:
    """Return styled text for a rich console."""
    from rich.text import Text

    return Text.assemble(*parts)


def wrapped(text: str, width: int) -> list[str]:
    """Return the lines of a text, at least one; only a word that is wider than `width` is too."""
    lines = []
    for line in text.split("\n"):
        if len(line) <= width and line.isprintable():  # most do; a wrapper takes 50 us to make
            lines.append(line.rstrip())
            continue
        lines += _wrapper(max(10, width)).wrap(line) or [""]
    return lines


def _wrapper(width: int) -> textwrap.TextWrapper:
    # A path or a key that is cut in two can no longer be copied.
    return textwrap.TextWrapper(width, break_long_words=False, break_on_hyphens=False)


def _columns(texts: Sequence[str], widths: Sequence[int]) -> str:
    cells = zip(texts, widths, strict=True)
    return "".join(f"{text:<{width}}" for text, width in cells).rstrip()
