"""What a run is, in a few rows, before its first step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trainer_core.terminal import figures

if TYPE_CHECKING:
    from trainer_core.program import Program
    from trainer_core.run import Run

Rows = list[tuple[str, str]]


def summary_rows(run: Run, program: Program, step: int) -> Rows:
    """Return (label, value) of what a person checks before letting a run go on.

    Args:
        run: the run.
        program: what it was made of.
        step: from which it goes on.
    """
    config = run.config
    rows: Rows = [("model", _model(config, program))]
    rows.append(("batch", _batch(run, program)))
    rows.append(("devices", _devices(run)))
    rows += [(name, text) for name, text in program.data.summary.items()]
    rows.append(("optimizer", _optimizer(config)))
    rows.append(("run", f"{run.directory}, {run.settings.steps:,} steps"))
    if step:
        rows.append(("resumed", f"from the checkpoint of step {step:,}"))
    return rows


def _model(config: Any, program: Program) -> str:
    parts = {name: text for name, text in program.model.summary.items() if name != "parameters"}
    described = ", ".join(f"{name} {text}" for name, text in parts.items())
    count = f"{figures.amount(program.param_count)} parameters"
    return f"{config['model']['use']}, {count}" + (f", {described}" if described else "")


def _batch(run: Run, program: Program) -> str:
    tokens = program.tokens_per_step
    if tokens is None:
        return f"{run.batch_size:,} examples a step"
    return f"{run.batch_size:,} sequences, {tokens:,} tokens a step"


def _devices(run: Run) -> str:
    devices = run.mesh.devices.flat
    kind = devices[0].device_kind
    axes = [f"{name} {size}" for name, size in run.mesh.shape.items() if size > 1]
    mesh = f", mesh {' x '.join(axes)}" if axes else ""
    return f"{len(devices)} x {kind}{mesh}"


def _optimizer(config: Any) -> str:
    schedule = dict(config["schedule"])
    text = f"{config['optimizer']['use']}, learning rate {schedule.get('learning_rate', '?')}"
    return f"{text}, {schedule['use']}"
