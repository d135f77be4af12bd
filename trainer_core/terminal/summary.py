"""What a run is, in a few rows, before its first step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from trainer_core.defaults.jsonl import last_reported
from trainer_core.terminal import figures

if TYPE_CHECKING:
    from trainer_core.program import Program
    from trainer_core.run import Run
    from trainer_core.terminal.page import Page

STOPPING = "stops after this step and saves; Ctrl-C once more ends at once, without saving"


class Summary:
    """Prints what a run is, once, and below it from which step it goes on.

    Args:
        page: where to.
    """

    def __init__(self, page: Page) -> None:
        self._page = page
        self._column = 0  # of the values; 0 before there are any
        self._program: Program | None = None

    @property
    def is_shown(self) -> bool:
        return self._column > 0

    def show(self, run: Run, program: Program) -> None:
        """Print what is known before anything is compiled."""
        self._program = program
        rows = summary_rows(run, program)
        self._column = max(len(label) for label, _ in rows) + 2
        self._page.rows(rows)

    def end(self, run: Run, step: int) -> None:
        """The run begins after `step` steps: what follows is no longer what it is."""
        rows = resumed_rows(run, step)
        if rows and self._program is not None:
            rows += schedule_rows(run, self._program, step)
        self._page.rows(rows, left=self._column)
        self._page.line()


def summary_rows(run: Run, program: Program) -> list[tuple[str, str]]:
    """Return (label, value) of what a person checks before letting a run go on.

    Args:
        run: the run.
        program: what it was made of.
    """
    config = run.config
    said = dict(program.model.summary)
    name = f"{config['model']['use']} {said.pop('preset', '')}".strip()
    return [
        ("model", f"{name}, {figures.amount(program.param_count)} parameters"),
        *said.items(),
        ("batch", _batch(run, program)),
        ("devices", run.devices),
        *_uneven(run, program),
        *program.data.summary.items(),
        ("optimizer", _optimizer(config)),
        ("run", f"{run.directory}, {figures.steps(run.settings.steps)}{_saved(run)}"),
    ]


def resumed_rows(run: Run, step: int) -> list[tuple[str, str]]:
    """Return the row of a run that goes on from a step; none for a new one."""
    if not step:
        return []
    moved = run.devices_before not in ("", run.devices)
    before = f", made on {run.devices_before}" if moved else ""
    return [("resumed", f"from the checkpoint of step {step:,}{before}")]


def schedule_rows(run: Run, program: Program, step: int) -> list[tuple[str, str]]:
    """Return the row of a run whose learning rate was another when it came to this step.

    As where `run.steps` grew, which stretches a schedule that falls until the last.
    """
    at, metrics = last_reported(run.directory / "metrics.jsonl", step)
    if "learning_rate" not in metrics:
        return []
    before, skipped = metrics["learning_rate"], int(metrics.get("skipped_steps", 0))
    # A step that was skipped itself had the rate of the one after.
    now = [float(program.schedule(at - skipped - one)) for one in (1, 0)]
    if any(math.isclose(before, each, rel_tol=1e-3) for each in now):
        return []
    rates = figures.scientific(float(program.schedule(step - skipped))), figures.scientific(before)
    return [
        ("schedule", f"another from here on: the learning rate is {rates[0]}, and was {rates[1]}")
    ]


def _batch(run: Run, program: Program) -> str:
    parts = int(run.config["accumulate"].get("microbatches", 1))
    split = f", in {parts} microbatches" if parts > 1 else ""
    if run.mesh.size > run.axes.batch_parts() == 1:
        split += f", the same on all {run.mesh.size} devices"
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
