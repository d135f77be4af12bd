"""From a program to its plan: trace the step once, compile it once, and read what came of it."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import attrs
import jax

from trainer_core.assemble import open_run
from trainer_core.opening import closing
from trainer_core.plan.chips import Chip, chip_of
from trainer_core.plan.cost import Cost, cost_of
from trainer_core.plan.flops import Products, forward_products, products_of
from trainer_core.plan.memory import Memory, drawing_bytes, memory_of
from trainer_core.plan.roofline import Roofline, roofline_of
from trainer_core.plan.xla_memory import Refusal, XlaMemory
from trainer_core.program import Program, build_program

if TYPE_CHECKING:
    from trainer_core.config import Config

# The names by which JAX lowers for a platform whose devices need not be there.
_LOWERED = {"tpu": "tpu", "gpu": "cuda"}
# XLA's allocator takes this share of a GPU unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise.
_GPU_SHARE = 0.75


@attrs.frozen(kw_only=True)
class Plan:
    """What a step needs.

    Attributes:
        mesh: axis to devices along it.
        kind: of a device, in JAX's words.
        chip: its figures; None where the table has none.
        memory: of a device, by class; without activations where the compiler refused, and did not
            say how much it needs.
        xla_memory: what XLA says of the same; None where the step was not compiled.
        available: bytes of a device that a program may use; None where that is not known.
        refused: why the step does not fit, in the compiler's words; empty where it was compiled.
        step: the products of a step, on all devices together.
        forward: those of the forward pass alone.
        xla_flops: of a device, as XLA counts, a loop's body once; None where it does not say.
        cost: what a device exchanges; None where the step was not compiled.
        roofline: None without a chip, or a compiled step.
        build_seconds, compile_seconds: how long the plan took.
    """

    program: Program
    mesh: dict[str, int]
    kind: str
    chip: Chip | None
    memory: Memory
    xla_memory: XlaMemory | None
    available: float | None
    refused: str
    step: Products
    forward: Products
    xla_flops: float | None
    cost: Cost | None
    roofline: Roofline | None
    build_seconds: float
    compile_seconds: float

    @property
    def devices(self) -> int:
        return int(self.program.run.mesh.size)

    @property
    def tokens(self) -> int | None:
        """In a global batch; None where its batches hold none."""
        return self.program.tokens_per_step

    @property
    def tokens_per_second(self) -> float | None:
        """At most, where that is known."""
        if self.roofline is None or not self.tokens:
            return None
        return self.tokens / self.roofline.seconds

    @property
    def needed(self) -> int:
        """Bytes of a device: the compiler's word, where there is one."""
        return self.memory.total if self.xla_memory is None else self.xla_memory.total

    @property
    def beginning(self) -> int:
        """Bytes of a device while the first state is drawn, at most: a decoder's."""
        return self.memory.state + drawing_bytes(self.program)

    @property
    def fits(self) -> bool | None:
        """Whether a device can hold it; None where nobody knows what it has."""
        if self.refused:
            return False
        return None if self.available is None else self.needed <= self.available

    @property
    def model_flops(self) -> int:
        """What a step needs for the model alone: the forward pass three times."""
        return 3 * self.forward.total


def plan_step(config: Config, devices: Sequence[jax.Device]) -> Plan:
    """Compile the step of a config for devices that need not be there; nothing is allocated.

    Args:
        config: a resolved one.
        devices: all of the mesh.

    Raises:
        UserError: the config does not fit itself or the devices.
    """
    began = time.perf_counter()
    program = program_on(config, devices)
    return plan_program(program, time.perf_counter() - began)


def program_on(config: Config, devices: Sequence[jax.Device]) -> Program:
    """Return the program of a config on devices that need not be there; nothing is compiled.

    Raises:
        UserError: the config does not fit itself or the devices.
    """
    run, hooks = open_run(config, devices=devices)
    with closing(run, hooks):
        return build_program(run, hooks)


def plan_program(program: Program, build_seconds: float = 0.0) -> Plan:
    """Return the plan of a program, whose step is traced and compiled for it once."""
    began = time.perf_counter()
    mesh = program.run.mesh
    device = mesh.devices.flat[0]
    chip = chip_of(device.device_kind)
    available = _available(chip, device.platform)
    traced = program.trace_step()
    step, forward = products_of(traced.jaxpr), forward_products(program)
    build_seconds += time.perf_counter() - began

    began = time.perf_counter()
    outcome = _compile(traced, device.platform, memory_of(program).arguments, available)
    compile_seconds = time.perf_counter() - began
    memory = memory_of(program, outcome.temporaries)
    cost = cost_of(outcome.compiled.as_text()) if outcome.compiled else None
    return Plan(
        program=program,
        mesh=dict(mesh.shape),
        kind=device.device_kind,
        chip=chip,
        memory=memory,
        xla_memory=outcome.memory,
        available=available,
        refused=outcome.refused,
        step=step,
        forward=forward,
        xla_flops=_xla_flops(outcome.compiled),
        cost=cost,
        roofline=(
            roofline_of(chip, mesh.size, step, 3 * forward.total, memory, cost)
            if chip and cost
            else None
        ),
        build_seconds=build_seconds,
        compile_seconds=compile_seconds,
    )


@attrs.frozen
class _Outcome:
    """A compiled step and what it needs, or why there is none."""

    compiled: Any = None
    memory: XlaMemory | None = None
    temporaries: int | None = None
    refused: str = ""


def _compile(traced: Any, platform: str, arguments: int, available: float | None) -> _Outcome:
    if available is not None and arguments > available:
        # The compiler would say the same, perhaps minutes later.
        return _Outcome(refused="the state and the batch alone are more than a device has")
    lowered_for = {"lowering_platforms": (_LOWERED[platform],)} if platform in _LOWERED else {}
    try:
        compiled = traced.lower(**lowered_for).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        refusal = Refusal.read(str(error), arguments)
        return _Outcome(temporaries=refusal.passing, refused=refusal.said)
    memory = XlaMemory.of(compiled, platform)
    return _Outcome(compiled, memory, None if memory is None else memory.passing)


def _available(chip: Chip | None, platform: str) -> float | None:
    if chip is None:
        return None
    if platform != "gpu":
        return chip.memory
    return chip.memory * float(os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", _GPU_SHARE))


def _xla_flops(compiled: Any) -> float | None:
    """XLA's own count; it does not make one for every platform."""
    try:
        analysis = compiled.cost_analysis() if compiled else None
    except Exception:
        return None
    found = (analysis or {}).get("flops")
    return None if found is None or found <= 0 else float(found)
