"""Read the text of a compiled program: its computations, their instructions, and shapes."""

from __future__ import annotations

import math
import re

import attrs
import numpy as np
from numpy.typing import NDArray

_BITS = re.compile(r"(?:pred|(?:[a-z]+?)(\d+)\w*)$")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([\w\-]+)\((.*)$")


@attrs.frozen
class Instruction:
    """One line: `name = shape kind(operands), attributes`."""

    name: str
    shape: str
    kind: str
    rest: str

    @property
    def operands(self) -> list[str]:
        return re.findall(r"%([\w.\-]+)", self.rest.partition(")")[0])

    @property
    def called(self) -> list[str]:
        return re.findall(r"(?:body|calls|to_apply)=%?([\w.\-]+)", self.rest)

    @property
    def trips(self) -> int | None:
        """How often a loop runs, where the compiler says it."""
        told = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', self.rest)
        return int(told[1]) if told else None

    @property
    def value(self) -> int | None:
        """Of a constant that is one whole number."""
        found = re.match(r"(-?\d+)\)", self.rest) if self.kind == "constant" else None
        return int(found[1]) if found else None

    @property
    def branches(self) -> list[str]:
        listed = re.search(r"branch_computations=\{([^}]*)\}", self.rest)
        found = re.findall(r"%([\w.\-]+)", listed[1]) if listed else []
        return found + re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", self.rest)


def computations(text: str) -> dict[str, list[Instruction]]:
    """Return the instructions of each computation by its name; the first one's begins `ENTRY `."""
    found: dict[str, list[Instruction]] = {}
    lines: list[Instruction] = []
    for line in text.splitlines():
        if line.startswith("  "):
            if match := _INSTRUCTION.match(line):
                lines.append(Instruction(*match.groups()))
        elif head := re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line):
            lines = found.setdefault((head[1] or "") + head[2], [])
    return found


_TURNED = r"\[([\d,]+)\](?:T\(([\d,]+)\))?"


def group_of(attributes: str, devices: int) -> tuple[int, ...]:
    """Return the first group of devices: listed, an iota that is reshaped, or axes of a mesh."""
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return tuple(map(int, listed[1].split(",")))
    if iota := re.search(rf"replica_groups=\[([\d,]+)\]<={_TURNED}", attributes):
        groups = [int(number) for number in iota[1].split(",")]
        return tuple(_turned(iota[2], iota[3]).reshape(groups)[0].tolist())
    if mesh := re.search(
        rf"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\({_TURNED}\))? \{{([^}}]*)\}}",
        attributes,
    ):
        named = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh[1])}
        inside = set(re.findall(r"'(\w+)'", mesh[4]))
        ids = _turned(mesh[2] or str(math.prod(named.values())), mesh[3])
        ids = ids.reshape(tuple(named.values()))
        first = tuple(slice(None) if name in inside else 0 for name in named)
        return tuple(ids[first].flatten().tolist())
    return tuple(range(devices))


def _turned(sizes: str, order: str | None) -> NDArray[np.int64]:
    """All devices, flat, where `[2,4]T(1,0)` is an array of their numbers with its axes turned."""
    shape = [int(size) for size in sizes.split(",")]
    ids = np.arange(math.prod(shape)).reshape(shape)
    return ids.transpose([int(axis) for axis in order.split(",")] if order else None).flatten()


@attrs.frozen
class Shape:
    """The dtype and the dimensions of an array."""

    dtype: str
    sizes: tuple[int, ...]

    @property
    def bytes(self) -> int:
        bits = _BITS.match(self.dtype)
        return math.prod(self.sizes) * int((bits and bits[1]) or 8) // 8


def shapes_of(text: str) -> list[Shape]:
    """Return the array, or those in a tuple, as a compiled program writes them."""
    return [
        Shape(dtype, tuple(int(size) for size in sizes.split(",") if size))
        for dtype, sizes in re.findall(r"(\w+)\[([\d,]*)\]", text)
    ]
