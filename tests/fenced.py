"""What a page shows: its fenced blocks, the commands in them, and output as it is compared."""

from __future__ import annotations

import re
from pathlib import Path

import attrs


@attrs.frozen
class Block:
    """A fenced block: the line of its first line, its language, and its text."""

    line: int
    language: str
    text: str

    @property
    def file(self) -> str | None:
        """The file that it is, where it says so."""
        first = self.text.partition("\n")[0]
        return first.removeprefix("# file: ") if first.startswith("# file: ") else None

    @property
    def commands(self) -> list[tuple[str, list[str]]]:
        """Each command with the output that stands below it."""
        found: list[tuple[str, list[str]]] = []
        for line in self.text.splitlines():
            if line.startswith("$ "):
                found.append((line.removeprefix("$ ").partition("  #")[0].strip(), []))
            else:
                found[-1][1].append(line)
        return found


def blocks(page: Path) -> list[Block]:
    found = []
    lines = page.read_text().splitlines()
    start = None
    for number, line in enumerate(lines, 1):
        if line.startswith("```") and start is None:
            start = number
        elif line == "```" and start is not None:
            language = lines[start - 1].removeprefix("```")
            found.append(Block(start + 1, language, "\n".join(lines[start : number - 1]) + "\n"))
            start = None
    assert start is None, f"{page.name}:{start}: this block has no end"
    return found


def shown(page: Path, name: str) -> str:
    """Return a file as a page shows it, without the line that names it."""
    block = next(each for each in blocks(page) if each.file == name)
    return block.text.partition("\n")[2]


def masked(lines: list[str]) -> str:
    """Return lines of output with every number and every run of spaces made the same."""
    text = "\n".join(line.rstrip() for line in lines).strip("\n")
    text = re.sub(r"\d[\d.,:]*(e[-+]?\d+)?[kMG]?\b", "0", text)
    return re.sub(r"[ \t]+", " ", text) + "\n"


def pattern(expected: list[str]) -> str:
    """Return what matches masked output; test_docs.py says how a page shows it."""
    return "".join(
        "(?:.*\n)*" if line.strip() == "..." else re.escape(line).replace(r"\.\.\.", ".*") + "\n"
        for line in masked(expected).splitlines()
    )
