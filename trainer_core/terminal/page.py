"""Aligned text, at most 100 columns wide; with emphasis on a terminal, plain elsewhere.

rich is imported only for a terminal.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TypeAlias

from trainer_core.terminal.escaped import escaped
from trainer_core.terminal.output import Stdout, is_terminal, say

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

WIDTH = 100
_GAP = 2  # between two columns
_WORD = 24  # a column that has longer words may still be as narrow as this
_UNDER = 4  # what has no column is indented by this, under its row
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
    def is_terminal(self) -> bool:
        return self._console is not None

    @property
    def width(self) -> int:
        return min(WIDTH, self._console.width) if self._console is not None else WIDTH

    def line(self, *parts: Part) -> None:
        """Print one line, as it is: it is not wrapped, and its control characters are escaped."""
        parts = tuple(_safe(part) for part in parts)
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
        safe = [(escaped(label), escaped(value)) for label, value in rows]
        column = left if left is not None else max((len(label) for label, _ in safe), default=0) + 2
        for label, value in safe:
            lines = wrapped(value, self.width - indent - column)
            if len(label) > column - 2:
                self.line(" " * indent, (label, style))
                label = ""
            for line in lines:
                self.line(" " * indent, (f"{label:<{column}}", style), line)
                label = ""

    def table(self, head: Sequence[str], rows: Iterable[Sequence[str]], indent: int = 0) -> None:
        """Print columns under their heads, as `cells` does.

        Args:
            head: a text for each column.
            rows: as many texts in each.
            indent: spaces before each line.
        """
        listed = [tuple(map(escaped, row)) for row in rows]
        widths = self.widths([tuple(head), *listed], indent)
        self.cells([(text, "dim") for text in head], widths, indent)
        for row in listed:
            self.cells(row, widths, indent)

    def widths(self, rows: Sequence[Sequence[str]], indent: int = 0) -> list[int]:
        """Return how many characters each column of some rows gets on this page.

        The widest give way first, but none to less than a word or _WORD characters. Where the page
        is too narrow even so, the last column gets none: it stands under its row.
        """
        columns = list(zip(*rows, strict=True))
        widths = [max(len(line) for text in each for line in text.split("\n")) for each in columns]
        words = [
            max((len(word) for text in each for word in text.split()), default=0)
            for each in columns
        ]
        least = [min(each, _WORD) for each in words]
        room = self.width - indent - _GAP * (len(columns) - 1)
        if sum(least) > room:
            widths[-1], least[-1], room = 0, 0, room + _GAP
        while sum(widths) > room:
            loose = [each for each, width in enumerate(widths) if width > least[each]]
            if not loose:
                break
            widths[max(loose, key=widths.__getitem__)] -= 1
        return widths

    def cells(self, cells: Sequence[Part], widths: Sequence[int], indent: int = 0) -> None:
        """Print a row of a table, each cell wrapped in its column.

        A word that is wider than its column is never cut: it stands on the next line that is free
        for it.
        """
        lines: list[list[Part]] = []
        used: list[int] = []
        left = indent
        for cell, width in zip(cells, widths, strict=True):
            text, style = (cell, "") if isinstance(cell, str) else cell
            row = 0 if width else len(lines)
            at, room = (left, width) if width else (indent + _UNDER, self.width - indent - _UNDER)
            for line in wrapped(text, room) if text else ():
                start = max(indent, min(at, self.width - len(line)))
                while row < len(lines) and used[row] and used[row] + _GAP > start:
                    row += 1
                if row == len(lines):
                    lines.append([])
                    used.append(0)
                lines[row] += [" " * (start - used[row]), (line, style)]
                used[row] = start + len(line)
                row += 1
            left += width + _GAP
        for parts in lines:
            self.line(*parts)


def _safe(part: Part) -> Part:
    return escaped(part) if isinstance(part, str) else (escaped(part[0]), part[1])


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
