"""How a run trains. The order of things is here; all else is behind a hook."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from trainer_core.config import Config, load_config
from trainer_core.directory import check_directory, write_directory
from trainer_core.errors import UserError
from trainer_core.hooks import Hooks
from trainer_core.lock import RunLock
from trainer_core.opening import built, closing, opened
from trainer_core.requests import Requests
from trainer_core.run import Run
from trainer_core.signals import Interrupted, SignalHandlers, interruptible
from trainer_core.supply import Supply


@attrs.frozen(kw_only=True, eq=False)
class Result:
    """How a run ended.

    Attributes:
        step: steps made, by this process and those before it.
        metrics: the last that were reported; empty where no step was made.
        state: the final TrainState; None where the run stopped before it had one.
        program: what the run was made of; None likewise.
        directory: where it is written.
        stopped: why it stopped before `run.steps`; empty where it finished.
        resumed_from: the step it went on from; 0 for a new run.
    """

    step: int
    metrics: Mapping[str, Any]
    state: Any
    program: Any
    directory: Path
    stopped: str = ""
    resumed_from: int = 0


def fit(
    config: Path | str | Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
    accept_changes: bool = False,
) -> Result:
    """Train, or go on where the run directory has a checkpoint.

    Args:
        config: a recipe's path, a dict of tables, or None for the tiny preset.
        overrides: `KEY=VALUE`, as on the command line.
        accept_changes: go on though the run directory belongs to another config.

    Raises:
        UserError: a mistake in the config; nothing was written.
        RunError: the run failed; what was saved is kept.
    """
    return train(load_config(config, overrides), accept_changes)


def train(config: Config, accept_changes: bool = False) -> Result:
    """Run a checked config; see `fit`."""
    check_directory(config, accept_changes)
    lock = RunLock(config.directory)
    with SignalHandlers() as signals, config.placing(), lock:
        stopping = signals.stopping
        try:
            run, hooks = opened(config, stopping)
        except Interrupted:
            return _nothing_done(config.directory, stopping.reason)
        if run.processes > 1:
            signals.install()
        with lock.checked(), closing(run, hooks):
            try:
                if run.is_main and run.directory.is_dir():
                    lock.take()
                    check_directory(config, accept_changes)  # another run may just have left it
                return _train(config, run, hooks, lock)
            except Interrupted:
                return _nothing_done(config.directory, stopping.reason)


def _train(config: Config, run: Run, hooks: Hooks, lock: RunLock) -> Result:
    hooks.phase(run=run, name="building", program=None)
    program = built(run, hooks)

    # Restored before anything is initialised or compiled: initialised and restored parameters
    # never exist at once, and a finished run answers without compiling.
    hooks.phase(run=run, name="restoring", program=program)
    program.check_optimizer()
    like = program.abstract_state
    state = interruptible(lambda: hooks.restore(run=run, like=like, data=program.data))
    first = 0 if state is None else int(state.step)
    if first > run.settings.steps:
        raise UserError(
            f"{run.directory} has made {first} steps already, more than run.steps = "
            f"{run.settings.steps}; raise run.steps, or start another run with "
            f"{run.settings.another}",
            "run.steps",
        )
    if first == run.settings.steps:
        return _result(program, state, first, {}, first)

    hooks.phase(run=run, name="compiling", program=program)
    step_fn = interruptible(program.compile_step)
    if state is None:
        hooks.phase(run=run, name="initialising", program=program)
        state = interruptible(program.initial_state)
    run.stopping.defer()  # what begins to be written has a checkpoint in the end
    write_directory(config, program, lock, first)
    hooks.start(run=run, program=program, step=first)
    hooks.phase(run=run, name="training", program=program)
    return _steps(run, hooks, program, step_fn, state, first, lock)


def _steps(
    run: Run, hooks: Hooks, program: Any, step_fn: Any, state: Any, first: int, lock: RunLock
) -> Result:
    import jax

    from trainer_core.meter import Meter, new_numbers

    meter = Meter(program, first)
    requests = Requests(run, first, lock)
    supply = Supply(program.batch)
    settings = run.settings
    waiting: tuple[int, Any] | None = None
    numbers: Any = {}
    step = first
    while step < settings.steps:
        # An accidental transfer between host and device is an error: it would stall the step.
        with jax.transfer_guard("disallow"):
            # Data advances only here, after the save of the step before.
            batch = program.place(supply.batch(step, numbers))
            state, numbers = step_fn(state, batch)
        step += 1

        # One step late: the device computes this step while the host reads the one before.
        if waiting is not None:
            hooks.report(run=run, step=waiting[0], metrics=meter.read(*waiting))
        waiting = (step, numbers) if _due(step, settings.log_every) else None

        asked = requests.after(step)
        finished = step == settings.steps
        evaluating = finished or _due(step, settings.eval_every)
        saving = finished or bool(asked.stop) or asked.save or _due(step, run.save_every)

        # The order matters: a step is reported once, with its evaluation, and saved only then,
        # so that a state which a plugin refuses is never saved.
        if evaluating:
            metrics = meter.read(step, numbers)
            with meter.paused():
                hooks.phase(run=run, name="evaluating", program=program)
                for answer in hooks.evaluate(run=run, step=step, state=state):
                    metrics |= new_numbers(metrics, answer)
                hooks.phase(run=run, name="training", program=program)
            hooks.report(run=run, step=step, metrics=metrics)
            waiting = None
        elif saving and waiting is not None:
            hooks.report(run=run, step=step, metrics=meter.read(*waiting))
            waiting = None
        if saving:
            with meter.paused():
                hooks.phase(run=run, name="saving", program=program)
                lock.check()
                hooks.save(run=run, step=step, state=state, data=program.data)
                requests.saved()
                hooks.phase(run=run, name="training", program=program)
        if asked.stop:
            break
    return _result(
        program, state, step, meter.last, first, "" if step == settings.steps else asked.stop
    )


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _result(
    program: Any, state: Any, step: int, metrics: Mapping[str, Any], first: int, stopped: str = ""
) -> Result:
    return Result(
        step=step,
        metrics=metrics,
        state=state,
        program=program,
        directory=program.run.directory,
        stopped=stopped,
        resumed_from=first,
    )


def _nothing_done(directory: Path, stopped: str) -> Result:
    return Result(
        step=0,
        metrics={},
        state=None,
        program=None,
        directory=directory,
        stopped=stopped,
    )
