"""Try meshes and what is computed again, and rank the steps that fit by their bound."""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

import attrs

from trainer_core.errors import UserError
from trainer_core.mesh import written
from trainer_core.plan.estimate import Estimate
from trainer_core.plan.knobs import mesh_setting
from trainer_core.plan.planning import Plan, plan_program
from trainer_core.plan.variants import Variants
from trainer_core.program import Program

_AXES = ("data", "fsdp", "tensor")
_REMAT = ("none", "dots", "full")  # the least computed again first
# An estimate of the activations is this much too large at most; measured, it is within a third.
_SLACK = 1.5


@attrs.frozen
class Found:
    """A variant that was compiled.

    Attributes:
        changes: `KEY=VALUE`; empty for the config as it is.
        plan: of it.
    """

    changes: tuple[str, ...]
    plan: Plan


@attrs.frozen
class Search:
    """What a search came to.

    Attributes:
        ranked: what fits, or may fit, the best bound first, or without one the least memory.
        too_large: what was compiled and does not fit.
        skipped: why others were not compiled, and how many.
    """

    ranked: list[Found]
    too_large: list[Found]
    skipped: Counter[str]


def search(
    plan: Plan, variants: Variants, seconds: float, told: Callable[[str], None] = lambda text: None
) -> Search:
    """Compile variants of a plan until the time is over.

    Args:
        plan: of the config as it is; it is among the results.
        variants: what it is made of.
        seconds: begin no other compilation after this long.
        told: is told what is compiled.
    """
    deadline = time.monotonic() + seconds
    found = [Found((), plan)] if plan.cost is not None else []
    skipped: Counter[str] = Counter()
    estimate = Estimate.from_plan(plan.program, plan.memory)
    # Meshes on which what computes least again fits.
    least = plan.program.run.config["model"].get("remat") in (None, _REMAT[0])
    settled = {mesh_setting(plan.mesh)} if plan.fits and least else set()
    for mesh, dcn, remat in _variants(plan):
        changes = tuple(filter(None, (mesh, dcn, remat)))
        if mesh in settled:
            skipped["computes again what fits without"] += 1
        elif time.monotonic() > deadline:
            skipped["no time was left"] += 1
        elif isinstance(tried := _tried(changes, variants, estimate, plan.available), str):
            skipped[tried] += 1
        else:
            told(f"compiling {' '.join(changes)}")
            found.append(Found(changes, plan_program(tried)))
            if found[-1].plan.fits:
                settled.add(mesh)
    fitting = [each for each in found if each.plan.fits is not False]
    return Search(
        sorted(fitting, key=_rank), [each for each in found if each.plan.fits is False], skipped
    )


def _variants(plan: Plan) -> Iterator[tuple[str, str, str]]:
    """Each mesh with its dcn and each remat, as settings, but for those that the plan has.

    Little of tensor and of data first: tensor exchanges activations in each layer, data keeps
    the state whole.
    """
    run = plan.program.run
    current = run.config["model"].get("remat")
    remats: tuple[str | None, ...] = (None,) if current is None else _REMAT
    for sizes in _meshes(plan):
        for remat in remats:
            if sizes != plan.mesh or remat != current:
                dcn = dcn_for(sizes, run.config["shard"].get("dcn", {}))
                yield mesh_setting(sizes), dcn, f"model.remat={remat}" if remat else ""


def dcn_for(sizes: Mapping[str, int], dcn: Mapping[str, int]) -> str:
    """Return the setting that lets an axis of a mesh cross the slices, as one of another did.

    It is empty where `dcn` fits as it is, or no axis can.
    """
    across = {axis: size for axis, size in dcn.items() if size > 1}
    if all(sizes.get(axis, 1) % size == 0 for axis, size in across.items()):
        return ""
    slices = math.prod(across.values())
    axis = next((axis for axis, size in sizes.items() if size % slices == 0), None)
    return "" if axis is None else f"shard.dcn={written({**dict.fromkeys(dcn, 1), axis: slices})}"


def _meshes(plan: Plan) -> list[dict[str, int]]:
    """The factorisations of the devices over the axes of the config's mesh that rules know."""
    axes = [axis for axis in _AXES if axis in plan.mesh]
    others = {axis: size for axis, size in plan.mesh.items() if axis not in axes}
    devices = plan.devices // math.prod(others.values())
    if not {"mesh", "rules"} <= set(plan.program.run.config["shard"]):
        return [plan.mesh]
    divisors = [each for each in range(1, devices + 1) if devices % each == 0]
    found = [
        {**dict(zip(axes, sizes, strict=True)), **others}
        for sizes in itertools.product(divisors, repeat=len(axes))
        if math.prod(sizes) == devices
    ]
    return sorted(found, key=lambda mesh: (mesh.get("tensor", 1), mesh.get("data", 1)))


def _tried(
    changes: tuple[str, ...], variants: Variants, estimate: Estimate, available: float | None
) -> Program | str:
    """Return a program that is worth compiling, or why it is not."""
    try:
        program = variants.build(*changes)
    except UserError as error:
        if "shard.dcn" in error.keys:
            return "[shard] dcn does not fit such a mesh"
        return "the model or the batch does not divide so"
    if available is not None:
        memory = estimate.memory(program)
        if memory.arguments > available:
            return "the state alone is too large"
        if memory.total - memory.activations * (1 - 1 / _SLACK) > available:
            return "estimated to be too large"
    return program


def _rank(found: Found) -> tuple[float, int]:
    roofline = found.plan.roofline
    return (roofline.seconds if roofline else 0.0, found.plan.needed)
