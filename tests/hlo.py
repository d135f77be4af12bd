"""Read a compiled program: its collectives and their bytes, the flops of its products."""

from __future__ import annotations

import math
import re
from collections import Counter

import attrs

_COLLECTIVES = (
    "all-to-all",
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "collective-permute",
)
_BYTES = {"f32": 4, "bf16": 2, "s32": 4, "f16": 2, "pred": 1}


@attrs.frozen
class Cost:
    """What one device does in one call.

    Attributes:
        collectives: kind to how many are executed.
        bytes: of their results.
        flops: of the products of matrices; on a TPU those in a loop count once.
    """

    collectives: Counter[str]
    bytes: int
    flops: int


def cost_of(text: str) -> Cost:
    """Return the cost of a compiled program; what is in a loop counts as often as it runs."""
    bodies = _computations(text)
    return _cost(bodies, next(name for name in bodies if name.startswith("ENTRY ")))


def _computations(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line)
        if head and not line.startswith(" "):
            lines = found.setdefault((head.group(1) or "") + head.group(2), [])
        elif line.startswith("  "):
            lines.append(line)
    return found


def _cost(bodies: dict[str, list[str]], name: str) -> Cost:
    collectives: Counter[str] = Counter()
    size = flops = 0
    shapes: dict[str, str] = {}
    for line in bodies[name]:
        made = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([\w\-]+)\(", line)
        if made is None:
            continue
        shapes[made.group(1)] = made.group(2)
        kind = made.group(3).removesuffix("-start")
        if kind in _COLLECTIVES:
            collectives[kind] += 1
            # Of an asynchronous one the last is the result, before it stand the operands.
            size += _size(made.group(2), last=made.group(3).endswith("-start"))
        assert kind != "conditional", line  # what it costs is not known here
        assert kind != "custom-call" or "matmul" not in line, line
        if kind == "dot":
            flops += _dot_flops(line, made.group(2), shapes)
        trips = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', line)
        for called in re.findall(r"(?:body|calls|to_apply)=%?([\w.\-]+)", line):
            inner = _cost(bodies, called)
            # The TPU compiler does not say how often a loop runs; flops then count once.
            assert kind != "while" or trips or not inner.collectives, line
            times = int(trips.group(1)) if trips and kind == "while" else 1
            for each, count in inner.collectives.items():
                collectives[each] += count * times
            size += inner.bytes * times
            flops += inner.flops * times
    return Cost(collectives, size, flops)


def _size(shapes: str, last: bool) -> int:
    sizes = [
        _BYTES[dtype] * math.prod(map(int, filter(None, sizes.split(","))))
        for dtype, sizes in re.findall(r"(\w+)\[([\d,]*)\]", shapes)
    ]
    return sizes[-1] if last else sum(sizes)


def _dot_flops(line: str, result: str, shapes: dict[str, str]) -> int:
    left = re.search(r" dot\([^,]*?%?([\w.\-]+),", line)
    over = re.search(r"lhs_contracting_dims=\{([\d,]+)\}", line)
    assert left is not None, line
    assert over is not None, line
    sizes = [int(each) for each in re.findall(r"\[([\d,]*)\]", shapes[left.group(1)])[0].split(",")]
    summed = math.prod(sizes[int(each)] for each in over.group(1).split(","))
    out = re.findall(r"\[([\d,]*)\]", result)[0]
    return 2 * summed * math.prod(map(int, filter(None, out.split(","))))
