"""What a compiled program costs a device: its collectives and their bytes, its products."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence

import attrs

from trainer_core.plan.hlo import (
    Instruction,
    computations,
    group_of,
    shapes_of,
)

_KINDS = (
    "all-to-all",
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "collective-permute",
    "collective-broadcast",
    "ragged-all-to-all",
)
_OF_UNKNOWN_LENGTH = "a loop of unknown length, counted once"


@attrs.frozen
class Exchange:
    """Equal collectives of one device.

    Attributes:
        kind: what it is, such as `all-gather`.
        group: the devices that take part in it, with one of them.
        bytes: of its result.
        count: how many are executed.
        links: of a `collective-permute`, which device sends to which.
        between_slices: whether it goes through the data center's network, as a TPU's compiler
            says it of several slices.
    """

    kind: str
    group: tuple[int, ...]
    bytes: int
    count: int = 1
    between_slices: bool = False
    links: tuple[tuple[int, int], ...] = ()

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
class Sums:
    """What several collectives come to: how many, bytes of their results, and bytes to send."""

    count: int
    bytes: int
    sent: float

    @classmethod
    def of(cls, exchanges: Sequence[Exchange]) -> Sums:
        return cls(
            count=sum(each.count for each in exchanges),
            bytes=sum(each.bytes * each.count for each in exchanges),
            sent=sum(each.sent for each in exchanges),
        )


@attrs.frozen
class Cost:
    """What one device does in one call.

    Attributes:
        exchanges: its collectives, those in a loop as often as it runs.
        flops: of the products of matrices, those in a loop likewise; 0 where the compiler makes
            convolutions or library calls of them.
        unknown: what is not counted as often as it is executed.
    """

    exchanges: tuple[Exchange, ...] = ()
    flops: int = 0
    unknown: frozenset[str] = frozenset()

    @property
    def collectives(self) -> Counter[str]:
        """Kind to how many are executed."""
        return Counter({kind: sums.count for kind, sums in self.by_kind.items()})

    @property
    def by_kind(self) -> dict[str, Sums]:
        """Kind to what its collectives come to, those that are executed most first."""
        found: dict[str, list[Exchange]] = {}
        for each in self.exchanges:
            kind = f"{each.kind} between slices" if each.between_slices else each.kind
            found.setdefault(kind, []).append(each)
        sums = {kind: Sums.of(exchanges) for kind, exchanges in found.items()}
        return dict(sorted(sums.items(), key=lambda item: -item[1].count))

    @property
    def bytes(self) -> int:
        """Of all results."""
        return Sums.of(self.exchanges).bytes


def cost_of(text: str) -> Cost:
    """Return the cost of a compiled program; what is in a loop counts as often as it runs.

    Args:
        text: of the program, optimised, `compiled.as_text()`.
    """
    partitions = re.search(r"num_partitions=(\d+)", text[:100_000])
    reader = _Reader(computations(text), int(partitions[1]) if partitions else 1)
    return reader.cost(next(name for name in reader.bodies if name.startswith("ENTRY ")))


class _Reader:
    """Adds up the computations of a program.

    Args:
        bodies: name of a computation to its instructions.
        devices: how many run the program.
    """

    def __init__(self, bodies: Mapping[str, list[Instruction]], devices: int) -> None:
        self.bodies, self.devices = bodies, devices
        self.costs: dict[str, Cost] = {}

    def cost(self, name: str) -> Cost:
        if name not in self.costs:
            self.costs[name] = self._added(name)
        return self.costs[name]

    def _added(self, name: str) -> Cost:
        known = {each.name: each for each in self.bodies.get(name, ())}
        found = Cost()
        begins = any("AsyncCollectiveStart" in each.rest for each in known.values())
        for each in known.values():
            kind = each.kind.removesuffix("-start")
            # The TPU's compiler cuts some into pieces, of which only one begins it.
            if kind in _KINDS and "chain_id=" in each.rest and not begins:
                continue
            if kind in _KINDS:
                found = _sum(found, Cost((self._exchange(each, kind),)))
            elif kind == "recv" and (exchange := _between_slices(each)):
                found = _sum(found, Cost((exchange,)))
            elif kind == "dot":
                found = _sum(found, Cost(flops=_dot_flops(each, known)))
            elif kind == "while":
                found = _sum(found, self._loop(each, known))
            elif kind == "conditional":
                # One of them is executed: the one that exchanges most, as nothing else is known.
                branches = [self.cost(branch) for branch in each.branches]
                found = _sum(found, max(branches, key=lambda cost: (cost.bytes, cost.flops)))
            elif kind not in ("async-update", "async-done"):  # they name what their start does
                for called in each.called:
                    found = _sum(found, self._part(called))
        return found

    def _loop(self, loop: Instruction, known: Mapping[str, Instruction]) -> Cost:
        body = self.cost(loop.called[0])
        times = self._trips(loop, known) if loop.trips is None else loop.trips
        if times is None and (body.exchanges or body.flops):
            body = attrs.evolve(body, unknown=body.unknown | {_OF_UNKNOWN_LENGTH})
        return _times(body, 1 if times is None else times)

    def _trips(self, loop: Instruction, known: Mapping[str, Instruction]) -> int | None:
        """Read how far a loop counts, and in which steps: the TPU's compiler does not say it."""
        condition = re.search(r"condition=%?([\w.\-]+)", loop.rest)
        instructions = self.bodies.get(condition[1], ()) if condition else ()
        inside = {each.name: each for each in instructions}
        compared = [each for each in inside.values() if each.kind == "compare"]
        if len(compared) != 1 or "direction=LT" not in compared[0].rest:
            return None
        counter, bound = (inside.get(name) for name in compared[0].operands)
        place = re.search(r"index=(\d+)", counter.rest) if counter else None
        if bound is None or bound.value is None or place is None:
            return None
        start = known.get(loop.operands[0])
        first = start.operands[int(place[1])] if start and start.kind == "tuple" else ""
        begin = known[first].value if first in known else None
        step = _increment(self.bodies[loop.called[0]], int(place[1]))
        return -(-(bound.value - (begin or 0)) // step)

    def _part(self, name: str) -> Cost:
        cost = self.cost(name)
        if name.startswith("all-reduce-scatter"):
            return attrs.evolve(cost, exchanges=tuple(map(_scattered, cost.exchanges)))
        return cost

    def _exchange(self, made: Instruction, kind: str) -> Exchange:
        shapes = shapes_of(made.shape)
        if made.kind.endswith("-start") and kind != "all-reduce":
            # Its operands, as many results, and what the compiler notes of it, which are scalars.
            shapes = [each for each in shapes if each.sizes]
            shapes = shapes[len(shapes) // 2 :]
        told = re.search(r"source_target_pairs=\{([{},\d]+)\}", made.rest)
        pairs = re.findall(r"\{(\d+),(\d+)\}", told[1]) if told else []
        links = tuple((int(source), int(target)) for source, target in pairs)
        group = links[0] if links else group_of(made.rest, self.devices)
        return Exchange(kind, group, sum(each.bytes for each in shapes), links=links)


def _between_slices(recv: Instruction) -> Exchange | None:
    """The collective of which this is the second half, beside a `send`; its first result counts."""
    told = re.search(r'_xla_megascale_transfer_type="(\w+)"', recv.rest)
    # Groups of devices, or all slices, numbered from 1, by the devices of each.
    group = re.search(r'_xla_megascale_target=(?:\{|")\{([\d,]+)\}', recv.rest)
    if told is None or group is None:
        return None
    kind = told[1].lower().replace("_", "-").replace("one-to-one", "collective-permute")
    members = tuple(map(int, group[1].split(",")))
    return Exchange(kind, members, shapes_of(recv.shape)[0].bytes, between_slices=True)


def _increment(body: Sequence[Instruction], place: int) -> int:
    """By how much a loop's body raises the counter at a place of its tuple; by one, as JAX does,
    where that cannot be read.
    """
    known = {each.name: each for each in body}
    result = known[body[-1].name]
    name = result.operands[place] if result.kind == "tuple" else ""
    total = 0
    while name in known and known[name].kind in ("add", "copy"):
        operands = known[name].operands
        steps = [known[each].value for each in operands if each in known]
        total += next((step for step in steps if step is not None), 0)
        name = next((each for each in operands if each in known and known[each].value is None), "")
    return total or 1


def _sum(one: Cost, other: Cost) -> Cost:
    counts: Counter[Exchange] = Counter()
    for each in (*one.exchanges, *other.exchanges):
        counts[attrs.evolve(each, count=1)] += each.count
    exchanges = tuple(attrs.evolve(each, count=count) for each, count in counts.items())
    return Cost(exchanges, one.flops + other.flops, one.unknown | other.unknown)


def _times(body: Cost, times: int) -> Cost:
    exchanges = tuple(
        attrs.evolve(each, count=each.count * times) for each in body.exchanges if times
    )
    return Cost(exchanges, body.flops * times, body.unknown)


def _scattered(each: Exchange) -> Exchange:
    """An all-reduce of which each device keeps its part."""
    return attrs.evolve(each, kind="reduce-scatter", bytes=each.bytes // len(each.group))


def _dot_flops(dot: Instruction, known: Mapping[str, Instruction]) -> int:
    over = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", dot.rest)
    left = shapes_of(known[dot.operands[0]].shape)[0].sizes
    summed = math.prod(left[int(each)] for each in over[1].split(",") if each) if over else 1
    return 2 * summed * math.prod(shapes_of(dot.shape)[0].sizes)
