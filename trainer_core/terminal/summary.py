"""What a run is, in a few rows, before its first step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from trainer_core.terminal import figures

if TYPE_CHECKING:
    from trainer_core.program import Program
    from trainer_core.run import Run

STOPPING = "stops after this step and saves; Ctrl-C once more ends at once, without saving"


def summary_rows(run: Run, program: Program, step: int) -> list[tuple[str, str]]:
    """Return (label, value) of what a person checks before letting a run go on.

    Args:
        run: the run.
        program: what it was made of.
        step: from which it goes on.
    """
    config = run.config
    said = dict(program.model.summary)
    name = f"{config['model']['use']} {said.pop('preset', '')}".strip()
    rows = [
        ("model", f"{name}, {figures.amount(program.param_count)} parameters"),
        *said.items(),
        ("batch", _batch(run, program)),
        ("devices", run.devices),
        *_uneven(run, program),
        *program.data.summary.items(),
        ("optimizer", _optimizer(config)),
        ("run", f"{run.directory}, {figures.steps(run.settings.steps)}{_saved(run)}"),
    ]
    if step:
        moved = run.devices_before not in ("", run.devices)
        before = f", made on {run.devices_before}" if moved else ""
        rows.append(("resumed", f"from the checkpoint of step {step:,}{before}"))
    return rows


def _batch(run: Run, program: Program) -> str:
    parts = int(run.config["accumulate"].get("microbatches", 1))
    split = f", in {parts} microbatches" if parts > 1 else ""
    tokens = program.tokens_per_step
    if tokens is None:
        return f"{run.batch_size:,} examples a step{split}"
    return f"{run.batch_size:,} sequences, {tokens:,} tokens a step{split}"


def _uneven(run: Run, program: Program) -> list[tuple[str, str]]:
    """What `[shard] uneven = "replicate"` did, which costs memory."""
    import jax

    infos = jax.tree.leaves((program.model.params, program.model.buffers))
    found = [f"{info.path}: {axis}" for info in infos for axis in run.axes.uneven_axes(info)]
    more = [f"and {len(found) - 1} more: `trainer explain sharding`"] if len(found) > 1 else []
    return [("uneven", "; ".join([*found[:1], *more]))] if found else []


def _optimizer(config: Mapping[str, Any]) -> str:
    schedule = dict(config["schedule"])
    use = schedule.pop("use")
    rate = schedule.pop("learning_rate", None)
    said = [f"{config['optimizer']['use']}, {use} schedule"]
    if rate is not None:
        said.append(f"peak learning rate {rate:g}")
    said += [f"{name} {value}" for name, value in schedule.items() if name == "warmup"]
    return ", ".join(said)


def _saved(run: Run) -> str:
    return f", a checkpoint every {run.save_every:,}" if run.save_every else ""
