"""Read a compiled program: its collectives and their bytes, the flops of its products."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping

import attrs
import numpy as np

_KINDS = (
    "all-to-all",
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "collective-permute",
    "collective-broadcast",
    "ragged-all-to-all",
)
_BITS = re.compile(r"(?:pred|(?:[a-z]+?)(\d+)\w*)$")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([\w\-]+)\((.*)$")
_UNROLLED = "a loop of unknown length, counted once"
_LIBRARY = "products in a library call"


@attrs.frozen
class Exchange:
    """Equal collectives of one device.

    Attributes:
        kind: what it is, such as `all-gather`.
        group: the devices that take part in it, with one of them.
        bytes: of its result.
        count: how many are executed.
    """

    kind: str
    group: tuple[int, ...]
    bytes: int
    count: int = 1

    @property
    def sent(self) -> float:
        """Bytes that a device has to send at least, all of them together.

        Source: Chan et al., "Collective communication: theory, practice, and experience", 2007,
        table 2: of n parts a device already has one.
        """
        devices = len(self.group)
        others = (devices - 1) / devices
        parts = {
            "all-reduce": 2 * others,
            "reduce-scatter": devices - 1.0,
            "collective-permute": 1.0,
        }
        return self.count * self.bytes * parts.get(self.kind, others)


@attrs.frozen
class Cost:
    """What one device does in one call.

    Attributes:
        exchanges: its collectives, those in a loop as often as it runs.
        flops: of the products of matrices, those in a loop likewise; 0 where the compiler makes
            convolutions or library calls of them.
        unknown: what is not counted as often as it is executed, or not at all.
    """

    exchanges: tuple[Exchange, ...] = ()
    flops: int = 0
    unknown: frozenset[str] = frozenset()

    @property
    def collectives(self) -> Counter[str]:
        """Kind to how many are executed."""
        found: Counter[str] = Counter()
        for each in self.exchanges:
            found[each.kind] += each.count
        return found

    @property
    def bytes_by_kind(self) -> Counter[str]:
        """Kind to the bytes of the results."""
        found: Counter[str] = Counter()
        for each in self.exchanges:
            found[each.kind] += each.bytes * each.count
        return found

    @property
    def bytes(self) -> int:
        """Of all results."""
        return self.bytes_by_kind.total()


def cost_of(text: str) -> Cost:
    """Return the cost of a compiled program; what is in a loop counts as often as it runs.

    Args:
        text: of the program, optimised, `compiled.as_text()`.
    """
    partitions = re.search(r"num_partitions=(\d+)", text[:100_000])
    reader = _Reader(_computations(text), int(partitions[1]) if partitions else 1)
    return reader.cost(next(name for name in reader.bodies if name.startswith("ENTRY ")))


def _computations(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        if line.startswith("  "):
            lines.append(line)
        elif head := re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line):
            lines = found.setdefault((head[1] or "") + head[2], [])
    return found


@attrs.frozen
class _Instruction:
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
    def branches(self) -> list[str]:
        listed = re.search(r"branch_computations=\{([^}]*)\}", self.rest)
        found = re.findall(r"%([\w.\-]+)", listed[1]) if listed else []
        return found + re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", self.rest)


class _Reader:
    """Adds up the computations of a program.

    Args:
        bodies: name of a computation to its lines.
        devices: how many run the program.
    """

    def __init__(self, bodies: Mapping[str, list[str]], devices: int) -> None:
        self.bodies, self.devices = bodies, devices
        self.costs: dict[str, Cost] = {}

    def cost(self, name: str) -> Cost:
        if name not in self.costs:
            self.costs[name] = self._added(name)
        return self.costs[name]

    def instructions(self, name: str) -> Iterator[_Instruction]:
        for line in self.bodies.get(name, ()):
            if match := _INSTRUCTION.match(line):
                yield _Instruction(*match.groups())

    def _added(self, name: str) -> Cost:
        known = {each.name: each for each in self.instructions(name)}
        found = Cost()
        pieces: set[str] = set()
        for each in known.values():
            kind = each.kind.removesuffix("-start")
            if kind in _KINDS:
                found = _sum(found, Cost((self._exchange(each, kind),)))
            elif kind == "dot":
                found = _sum(found, Cost(flops=_dot_flops(each, known)))
            elif kind == "custom-call" and re.search("matmul|gemm|conv", each.rest):
                found = _sum(found, Cost(unknown=frozenset({_LIBRARY})))
            elif kind == "while":
                found = _sum(found, self._loop(each, known))
            elif kind == "conditional":
                # One of them is executed: the one that exchanges most, as nothing else is known.
                branches = [self.cost(branch) for branch in each.branches]
                found = _sum(found, max(branches, key=lambda cost: (cost.bytes, cost.flops)))
            else:
                for called in each.called:
                    found = _sum(found, self._part(called, pieces))
        return found

    def _loop(self, loop: _Instruction, known: Mapping[str, _Instruction]) -> Cost:
        body = self.cost(loop.called[0])
        times = _told_trips(loop) or self._trips(loop, known)
        unknown = body.unknown
        if times is None and (body.exchanges or body.flops):
            unknown |= {_UNROLLED}
        times = 1 if times is None else times
        exchanges = tuple(
            attrs.evolve(each, count=each.count * times) for each in body.exchanges if times
        )
        return Cost(exchanges, body.flops * times, unknown)

    def _trips(self, loop: _Instruction, known: Mapping[str, _Instruction]) -> int | None:
        """JAX counts up by one to a constant; the TPU's compiler does not say how far."""
        condition = re.search(r"condition=%?([\w.\-]+)", loop.rest)
        inside = {each.name: each for each in self.instructions(condition[1])} if condition else {}
        compared = [each for each in inside.values() if each.kind == "compare"]
        if len(compared) != 1 or "direction=LT" not in compared[0].rest:
            return None
        counter, bound = (inside.get(name) for name in compared[0].operands)
        end = _constant(bound)
        place = re.search(r"index=(\d+)", counter.rest) if counter else None
        if end is None or place is None:
            return None
        initial = known.get(loop.operands[0])
        first = initial.operands[int(place[1])] if initial and initial.kind == "tuple" else ""
        begin = _constant(known.get(first))
        return end - (begin or 0)

    def _part(self, name: str, pieces: set[str]) -> Cost:
        """What a fusion does. The TPU's compiler cuts a collective into pieces, each in another
        fusion, which bear the same name of a chain: together they are one.
        """
        cost = self.cost(name)
        if not cost.exchanges:
            return cost
        lines = "\n".join(each.rest for each in self.instructions(name))
        if chain := re.search(r"channel_id=\d+,.*chain_id=\"\d+\"", lines):
            of_one = " ".join(re.findall(r"(?:channel|chain)_id=\"?(\d+)", chain[0]))
            if of_one in pieces:
                return attrs.evolve(cost, exchanges=())
            pieces.add(of_one)
        if name.startswith("all-reduce-scatter"):
            return attrs.evolve(cost, exchanges=tuple(map(_scattered, cost.exchanges)))
        return cost

    def _exchange(self, made: _Instruction, kind: str) -> Exchange:
        # Of an asynchronous one the last is the result, before it stand the operands.
        size = shape_bytes(made.shape, last=made.kind.endswith("-start"))
        pairs = re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", made.rest)
        group = (int(pairs[1]), int(pairs[2])) if pairs else _group(made.rest, self.devices)
        return Exchange(kind, group, size)


def _sum(one: Cost, other: Cost) -> Cost:
    counts: Counter[Exchange] = Counter()
    for each in (*one.exchanges, *other.exchanges):
        counts[attrs.evolve(each, count=1)] += each.count
    exchanges = tuple(attrs.evolve(each, count=count) for each, count in counts.items())
    return Cost(exchanges, one.flops + other.flops, one.unknown | other.unknown)


def _scattered(each: Exchange) -> Exchange:
    """An all-reduce of which each device keeps its part."""
    return attrs.evolve(each, kind="reduce-scatter", bytes=each.bytes // len(each.group))


def _told_trips(loop: _Instruction) -> int | None:
    told = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.rest)
    return int(told[1]) if told else None


def _constant(made: _Instruction | None) -> int | None:
    value = re.match(r"(-?\d+)\)", made.rest) if made and made.kind == "constant" else None
    return int(value[1]) if value else None


def _group(attributes: str, devices: int) -> tuple[int, ...]:
    """Return the first group of devices: listed, an iota that is reshaped, or axes of a mesh."""
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return tuple(map(int, listed[1].split(",")))
    if iota := re.search(
        r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes
    ):
        groups, sizes, order = (
            [int(number) for number in text.split(",")] if text else None for text in iota.groups()
        )
        ids = np.arange(math.prod(sizes or ())).reshape(sizes)
        return tuple(ids.transpose(order).reshape(groups)[0].tolist())
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", attributes):
        named = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh[1])}
        inside = set(re.findall(r"'(\w+)'", mesh[2]))
        ids = np.arange(math.prod(named.values())).reshape(tuple(named.values()))
        first = tuple(slice(None) if name in inside else 0 for name in named)
        return tuple(ids[first].flatten().tolist())
    return tuple(range(devices))


def shape_bytes(shapes: str, last: bool = False) -> int:
    """Return the bytes of a shape, or of all in a tuple, as a compiled program writes them."""
    sizes = [
        math.prod(map(int, filter(None, sizes.split(",")))) * _bits(dtype) // 8
        for dtype, sizes in re.findall(r"(\w+)\[([\d,]*)\]", shapes)
    ]
    return (sizes[-1] if last else sum(sizes)) if sizes else 0


def _bits(dtype: str) -> int:
    match = _BITS.match(dtype)
    return int(match[1]) if match and match[1] else 8


def _dot_flops(dot: _Instruction, known: Mapping[str, _Instruction]) -> int:
    over = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", dot.rest)
    left = _sizes(known[dot.operands[0]].shape)
    summed = math.prod(left[int(each)] for each in over[1].split(",") if each) if over else 1
    return 2 * summed * math.prod(_sizes(dot.shape))


def _sizes(shape: str) -> list[int]:
    inside = re.search(r"\[([\d,]*)\]", shape)
    return [int(each) for each in inside[1].split(",") if each] if inside else []
