"""A bound for the time of a step: no device computes, reads or sends faster than its maker says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import attrs

from trainer_core.plan.chips import Chip
from trainer_core.plan.cost import Cost, Exchange
from trainer_core.plan.flops import Products
from trainer_core.plan.memory import Memory


@attrs.frozen(kw_only=True)
class Roofline:
    """Seconds that each part of a device is busy at least; they may overlap, so the longest counts.

    Attributes:
        compute: the products of the step.
        memory: every argument read and the state written once, all else at the peak and what
            other devices sent written and read once.
        interconnect: what a device sends within its slice, or its host of GPUs: all that need not
            leave it.
        network: what a device's share of the network has to send beyond; None where it sends some,
            and nobody knows how fast.
        mfu: the share of the peak that the model's own products are, in the longest of these.
    """

    compute: float
    memory: float
    interconnect: float
    network: float | None
    mfu: float

    @property
    def parts(self) -> dict[str, float]:
        """Seconds by part, in words; without the network where it is not used, or not known."""
        found = {"compute": self.compute, "HBM": self.memory, "interconnect": self.interconnect}
        return found | ({"network": self.network} if self.network else {})

    @property
    def seconds(self) -> float:
        return max(self.parts.values())

    @property
    def limit(self) -> str:
        """Which part is the slowest."""
        return max(self.parts, key=lambda name: self.parts[name])


def roofline_of(
    chip: Chip, devices: int, step: Products, model_flops: int, memory: Memory, cost: Cost
) -> Roofline:
    """Return the bound for a compiled step.

    Args:
        chip: what a device can do.
        devices: how many there are.
        step: what the step computes, on all devices together.
        model_flops: what the model alone needs of that.
        memory: of a device.
        cost: what a device exchanges.
    """
    wide = sum(count for dtype, count in step.by_dtype.items() if dtype in ("float32", "float64"))
    compute = ((step.total - wide) / chip.flops + wide / chip.flops_float32) / devices
    own = memory.total - memory.arguments
    moved = memory.arguments + memory.state + 2 * own + 2 * cost.bytes
    far = sum(sent_beyond(chip, devices, each) for each in cost.exchanges)
    near = sum(each.sent for each in cost.exchanges) - far
    bound = Roofline(
        compute=compute,
        memory=moved / chip.memory_bandwidth,
        interconnect=near / chip.links,
        network=(far / chip.network if chip.network else None) if far else 0.0,
        mfu=0.0,
    )
    peak = chip.flops * devices * bound.seconds
    return attrs.evolve(bound, mfu=model_flops / peak) if peak else bound


def sent_beyond(chip: Chip, devices: int, exchange: Exchange) -> float:
    """Return the bytes that each network card has to send at least, all executions together.

    Each device has one, and may send by those of its host: all groups exchange at the same time,
    so that together they use them all alike. A group has n devices, on h hosts (or slices). What
    goes between hosts is least where a host's members add up, or pass on, among themselves what
    they can: it counts as one. For an array of S bytes, hosts together then send
        2 (h - 1) S  in an all-reduce: until one has the sum, each of the others has sent; and then
                     each of them must be told;
        (h - 1) S    in a reduce-scatter, of which the first half is left, and in an all-gather or a
                     broadcast, of which the second half is,
    by n cards: with g members on each host, 2 (h - 1) / h * S / g and (h - 1) / h * S / g of each.
    In an all-to-all each device sends its own parts, all but those for members on its host. In a
    collective-permute the host that sends most to others counts.

    Source: Chan et al., "Collective communication: theory, practice, and experience", 2007, tables
    1 and 2, with hosts for its nodes. Switches that add up themselves (SHARP) send less.

    Args:
        chip: what a device is.
        devices: how many run the program.
        exchange: equal collectives.
    """
    place = _place_of(chip, exchange)
    if exchange.links:
        leaving = Counter(place(one) for one, other in exchange.links if place(one) != place(other))
        return exchange.sent * max(leaving.values(), default=0) / min(devices, chip.pod)
    members = Counter(map(place, exchange.group))
    cards, others = len(exchange.group), len(members) - 1
    to_all = 1 - sum(count**2 for count in members.values()) / cards**2
    parts = {
        "all-reduce": 2 * others / cards,
        "reduce-scatter": float(others),  # of its result, an n-th of the array
        "all-to-all": to_all,
        "ragged-all-to-all": to_all,
        "collective-permute": min(others, 1.0),
    }
    return exchange.count * exchange.bytes * parts.get(exchange.kind, others / cards)


def _place_of(chip: Chip, exchange: Exchange) -> Callable[[int], int]:
    """Return what gives a device's slice, or its host of GPUs."""
    if not chip.shape:
        return lambda device: device // chip.pod
    if exchange.between_slices:  # slices themselves, or their devices: 100002 is one of the first
        return lambda member: member // 100_000 or member
    return lambda device: 0
