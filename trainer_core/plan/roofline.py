"""A bound for the time of a step: no device computes, reads or sends faster than its maker says."""

from __future__ import annotations

import attrs

from trainer_core.plan.chips import Chip
from trainer_core.plan.cost import Cost
from trainer_core.plan.flops import Products
from trainer_core.plan.memory import Memory


@attrs.frozen(kw_only=True)
class Roofline:
    """Seconds that each part of a device is busy at least; they may overlap, so the longest counts.

    Attributes:
        compute: the products of the step.
        memory: every argument read and the state written once, all else at the peak and what
            other devices sent written and read once.
        interconnect: what a device sends.
        mfu: the share of the peak that the model's own products are, in the longest of these.
    """

    compute: float
    memory: float
    interconnect: float
    mfu: float

    @property
    def seconds(self) -> float:
        return max(self.compute, self.memory, self.interconnect)

    @property
    def limit(self) -> str:
        """Which part is the slowest."""
        parts = {
            "compute": self.compute,
            "HBM": self.memory,
            "interconnect": self.interconnect,
        }
        return max(parts, key=lambda name: parts[name])


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
    # A group within a slice, or within a host of GPUs, uses the links; another one the network.
    near = sum(each.sent for each in cost.exchanges if _is_near(chip, each.group))
    far = sum(each.sent for each in cost.exchanges) - near
    parts = {
        "compute": compute,
        "memory": moved / chip.memory_bandwidth,
        "interconnect": max(near / chip.links, far / chip.network),
    }
    peak = chip.flops * devices * max(parts.values())
    return Roofline(**parts, mfu=model_flops / peak if peak else 0.0)


def _is_near(chip: Chip, group: tuple[int, ...]) -> bool:
    return chip.shape > 0 or len({device // chip.pod for device in group}) <= 1
