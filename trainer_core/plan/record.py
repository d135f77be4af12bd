"""A plan as JSON values."""

from __future__ import annotations

from typing import Any

import attrs

from trainer_core.plan.planning import Plan


def as_json(plan: Plan) -> dict[str, Any]:
    """Return all that a plan says; bytes are of a device, flops of all of them a step."""
    chip, cost, roofline = plan.chip, plan.cost, plan.roofline
    return {
        "device": plan.kind,
        "devices": plan.devices,
        "mesh": plan.mesh,
        "parameters": plan.program.param_count,
        "tokens_per_step": plan.tokens,
        "fits": plan.fits,
        "refused": plan.refused,
        "available_bytes": plan.available,
        "memory": {**attrs.asdict(plan.memory), "total": plan.memory.total},
        "flops": {
            "model": plan.model_flops,
            "step": plan.step.total,
            "step_by_dtype": dict(plan.step.by_dtype),
            "in_loops_once": plan.step.in_loops_once,
            "xla_a_device_in_loops_once": plan.xla_flops,
            "not_counted": sorted(plan.step.unknown),
        },
        "collectives": None
        if cost is None
        else {
            kind: {
                "count": count,
                "bytes": cost.bytes_by_kind[kind],
                "sent_bytes": sum(each.sent for each in cost.exchanges if each.kind == kind),
            }
            for kind, count in sorted(cost.collectives.items())
        },
        "collectives_not_counted": None if cost is None else sorted(cost.unknown),
        "roofline": None
        if roofline is None
        else {
            "compute_seconds": roofline.compute,
            "memory_seconds": roofline.memory,
            "interconnect_seconds": roofline.interconnect,
            "step_seconds": roofline.seconds,
            "mfu": roofline.mfu,
            "tokens_per_second": plan.tokens_per_second,
        },
        "chip": None if chip is None else attrs.asdict(chip),
        "build_seconds": plan.build_seconds,
        "compile_seconds": plan.compile_seconds,
    }
