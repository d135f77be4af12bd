"""A bound for the time of a step: no device computes, reads or sends faster than its maker says."""

from __future__ import annotations

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
        interconnect: what a device sends within its slice, or its host of GPUs.
        network: what it sends beyond; None where it sends some, and nobody knows how fast.
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
    far = sum(each.sent for each in cost.exchanges if _is_far(chip, each))
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


def _is_far(chip: Chip, exchange: Exchange) -> bool:
    """Whether it leaves the slice, or the host of GPUs."""
    if chip.shape:
        return exchange.between_slices
    together = exchange.links or (exchange.group,)
    return any(len({device // chip.pod for device in each}) > 1 for each in together)
