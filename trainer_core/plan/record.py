"""What `trainer plan` found, as JSON values."""

from __future__ import annotations

from typing import Any

import attrs

from trainer_core.plan.answer import Answer
from trainer_core.plan.knobs import Knob
from trainer_core.plan.planning import Plan
from trainer_core.plan.search import Search


def as_json(answer: Answer) -> dict[str, Any]:
    """Return all that is known; bytes are of a device, flops of all of them a step."""
    return {
        **_plan(answer.plan),
        "knobs": [_knob(each) for each in answer.knobs],
        "search": None if answer.search is None else _search(answer.search),
    }


def _knob(knob: Knob) -> dict[str, Any]:
    return {
        "changes": knob.changes,
        "cost": knob.cost,
        "memory": {**attrs.asdict(knob.memory), "total": knob.memory.total},
        "saved_bytes": knob.saved,
    }


def _search(search: Search) -> dict[str, Any]:
    return {
        "ranked": [{"changes": each.changes, **_plan(each.plan)} for each in search.ranked],
        "too_large": [{"changes": each.changes, **_plan(each.plan)} for each in search.too_large],
        "skipped": dict(search.skipped),
    }


def _plan(plan: Plan) -> dict[str, Any]:
    chip, cost, roofline, xla = plan.chip, plan.cost, plan.roofline, plan.xla_memory
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
        "xla_memory": None if xla is None else {**attrs.asdict(xla), "total": xla.total},
        "beginning_bytes_at_most": plan.beginning,
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
            kind: {"count": sums.count, "bytes": sums.bytes, "sent_bytes": sums.sent}
            for kind, sums in cost.by_kind.items()
        },
        "collectives_not_counted": None if cost is None else sorted(cost.unknown),
        "roofline": None
        if roofline is None
        else {
            "compute_seconds": roofline.compute,
            "memory_seconds": roofline.memory,
            "interconnect_seconds": roofline.interconnect,
            "network_seconds": roofline.network,
            "step_seconds": roofline.seconds,
            "mfu": roofline.mfu,
            "tokens_per_second": plan.tokens_per_second,
        },
        "chip": None if chip is None else attrs.asdict(chip),
        "build_seconds": plan.build_seconds,
        "compile_seconds": plan.compile_seconds,
    }
