"""What would make a step smaller: settings, the cheapest first, each with what it saves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import attrs

from trainer_core.errors import UserError
from trainer_core.mesh import written
from trainer_core.plan.estimate import Estimate
from trainer_core.plan.memory import Memory
from trainer_core.plan.planning import Plan
from trainer_core.plan.variants import Variants

_SHOWN = 3


@attrs.frozen
class Knob:
    """A change of the config that saves memory.

    Attributes:
        changes: `KEY=VALUE`, as they are typed; several, where one is not enough.
        cost: what it costs, in words.
        memory: of a device with it: the state's exact, the activations' estimated.
        saved: bytes of a device.
    """

    changes: tuple[str, ...]
    cost: str
    memory: Memory
    saved: int


def knobs(plan: Plan, variants: Variants) -> list[Knob]:
    """Return the three cheapest changes, and where none is enough, what is.

    Nothing is compiled.

    Args:
        plan: of a step that does not fit.
        variants: what it is made of.
    """
    trial = _Trial(plan, variants)
    saving = (knob for change, cost in _candidates(plan) if (knob := trial.of((change,), cost)))
    found = list(islice(saving, _SHOWN))
    if not any(trial.fits(each) for each in found) and (together := _together(plan, trial)):
        found.append(together)
    return found


def _together(plan: Plan, trial: _Trial) -> Knob | None:
    """Take one change after the other, the cheapest first, until the step fits."""
    changes: tuple[str, ...] = ()
    saved = 0
    for change, _ in _candidates(plan):
        key = change.partition("=")[0]
        more = (*(each for each in changes if each.partition("=")[0] != key), change)
        knob = trial.of(more, "")
        if knob is None or knob.saved <= saved:
            continue
        if trial.fits(knob):
            return _without_idle(knob, trial)
        changes, saved = more, knob.saved
    return None


def _without_idle(knob: Knob, trial: _Trial) -> Knob:
    """Leave out what a later change made idle, such as zero1 where no data axis is left."""
    for change in reversed(knob.changes):  # the dearest first
        fewer = tuple(each for each in knob.changes if each != change)
        without = trial.of(fewer, knob.cost) if fewer else None
        if without is not None and trial.fits(without):
            knob = without
    return knob


class _Trial:
    """Estimates the memory of changes.

    Args:
        plan: of the step as it is.
        variants: what it is made of.
    """

    def __init__(self, plan: Plan, variants: Variants) -> None:
        self.variants = variants
        self.available = plan.available or 0
        self.estimate = Estimate.from_plan(plan.program, plan.memory)
        self.before = self.estimate.memory(plan.program).total

    def of(self, changes: tuple[str, ...], cost: str) -> Knob | None:
        """Return what changes save; None where they do not, or do not fit the config."""
        try:
            memory = self.estimate.memory(self.variants.build(*changes))
        except UserError:  # the batch or the model does not divide so
            return None
        saved = self.before - memory.total
        return Knob(changes, cost, memory, saved) if saved > 0 else None

    def fits(self, knob: Knob) -> bool:
        return knob.memory.total <= self.available


def _candidates(plan: Plan) -> Iterator[tuple[str, str]]:
    """Those that change no number first, then those that change the training."""
    config: Mapping[str, Any] = plan.program.run.config
    model, shard, accumulate = config["model"], config["shard"], config["accumulate"]
    data, fsdp = plan.mesh.get("data", 1), plan.mesh.get("fsdp", 1)
    replicas = plan.program.run.axes.replica_axes(plan.program.model.params)
    if replicas and shard.get("optimizer_state") == "like_params":
        yield "shard.optimizer_state=zero1", "parameters are gathered after each step"
    if (
        replicas
        and accumulate.get("gradients") == "like_params"
        and accumulate.get("reduce") == "each"
        and accumulate["microbatches"] > 1
    ):
        yield "accumulate.gradients=zero2", "parameters are gathered after each step"
    if data > 1 and {"data", "fsdp"} <= set(shard.get("mesh", ())):
        mesh = {**plan.mesh, "data": 1, "fsdp": data * fsdp}
        yield mesh_setting(mesh), "parameters are gathered for each pass"
    rows = plan.program.run.batch_size // plan.program.run.axes.batch_parts()
    microbatches = accumulate.get("microbatches")
    if microbatches is not None and microbatches < rows:
        yield (
            f"accumulate.microbatches={_next_divisor(rows, min(2 * microbatches, rows))}",
            "smaller products; parameters are gathered for each microbatch",
        )
    if model.get("remat") == "none":
        yield "model.remat=dots", "all but the products is computed again"
    if model.get("remat") in ("none", "dots"):
        yield "model.remat=full", "the forward pass is computed again: a third more flops"
    if microbatches is not None and 2 * microbatches < rows:
        yield f"accumulate.microbatches={rows}", "one sequence of a device at a time"
    if model.get("compute_dtype") == "float32":
        yield "model.compute_dtype=bfloat16", "changes the numbers"
    if model.get("param_dtype") == "float32":
        yield "model.param_dtype=bfloat16", "changes the numbers: updates are rounded"
    if rows > 1:
        yield f"data.batch_size={plan.program.run.batch_size // 2}", "changes the training"


def mesh_setting(mesh: Mapping[str, int]) -> str:
    """Return the `KEY=VALUE` that sets a mesh."""
    return f"shard.mesh={written(mesh)}"


def _next_divisor(number: int, least: int) -> int:
    return next(each for each in range(least, number + 1) if number % each == 0)
