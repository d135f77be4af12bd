"""From a checkpoint to a run: plan it, and write a run directory that `trainer train` continues."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import jax
import numpy as np
from numpy.typing import NDArray

from trainer_checkpoint import stored, tree
from trainer_checkpoint.contents import FINITE, may_be_infinite
from trainer_checkpoint.convert.described import (
    described_checkpoint,
    described_program,
    step_of,
)
from trainer_checkpoint.convert.mapping import Mapping as Rules
from trainer_checkpoint.convert.plan import Plan, Spec
from trainer_checkpoint.convert.planning import make_plan
from trainer_checkpoint.steps import delete, steps
from trainer_core.cli.reading import say_imports
from trainer_core.cli.waiting import waiting
from trainer_core.config import Config, load_config
from trainer_core.directory import CONVERTING, check_directory, write_directory
from trainer_core.errors import UserError
from trainer_core.hooks import Hooks
from trainer_core.lock import RunLock
from trainer_core.opening import built, closing, opened
from trainer_core.program import Program
from trainer_core.saved import SAVED
from trainer_core.signals import interruptible
from trainer_core.types import TrainState

_NEW_RUN = "convert begins a new run: {}"


@attrs.frozen(kw_only=True)
class Converted:
    """What was done, or would be.

    Attributes:
        plan: what became of every array.
        specs: shape and dtype of the target's arrays, by path.
        directory: of the run.
        step: at which it goes on; None where that stands in the checkpoint, which was not read.
    """

    plan: Plan
    specs: Mapping[str, Spec]
    directory: Path
    step: int | None


def convert_into_run(
    source: Path,
    recipe: Path | None,
    overrides: Sequence[str],
    rules: Rules,
    *,
    step: int | None = None,
    fresh_optimizer: bool = False,
    dry: bool = False,
) -> Converted:
    """Write a run directory with one checkpoint, at the source's step.

    The run's key is that of a new run, and so is the state that its step keeps for itself. What
    a conversion left that did not come to its end is written anew.

    Args:
        source: a checkpoint that Orbax wrote.
        recipe, overrides: the run's config.
        rules: the mapping of names.
        step: of a checkpoint that does not say it.
        fresh_optimizer: begin with a new state of the optimizer.
        dry: only plan; nothing is written.

    Raises:
        UserError: it does not fit, or the directory has a run; nothing was written.
    """
    found = interruptible(lambda: stored.look(source))
    config = load_config(recipe, overrides, say_imports)
    # It shall not show what a training run shows.
    quiet = load_config(recipe, [*overrides, "plugins.progress=false"])
    _check_place(config)
    lock = RunLock(config.directory)
    with waiting("building") as phase, lock:
        if config.directory.is_dir() and not dry:
            lock.take()
            _check_place(config)  # another may just have left it
        with _opened(quiet) as (program, hooks):
            target = attrs.evolve(described_program(program), config=config.table)
            origin = described_checkpoint(found, rules.prefix, target.axes)
            given = step_of(found, origin, step)
            plan = make_plan(origin, target, rules, fresh_optimizer)
            done = Converted(plan=plan, specs=target.specs, directory=config.directory, step=given)
            if dry:
                return done
            phase("reading")
            arrays = interruptible(lambda: plan.carry_out(stored.read(found)))
            _check_finite(arrays)
            phase("writing")
            state = interruptible(lambda: _state(program, plan, arrays, given, fresh_optimizer))
            made = int(state.step)
            if lock.is_taken:
                _clear(config.directory)
            write_directory(config, program, lock, made, converting=True)
            hooks.save(run=program.run, step=made, state=state, data=program.data)
        (config.directory / CONVERTING).unlink()  # the save is on the disk
    return attrs.evolve(done, step=made)


def _check_place(config: Config) -> None:
    if config.chosen["checkpoint"].candidate.name == "none":
        raise UserError('[checkpoint] use = "none" saves nothing; convert needs one that does')
    unfinished = (config.directory / CONVERTING).exists()
    check_directory(config, accept_changes=unfinished, remedy=_NEW_RUN)
    if unfinished:
        return
    another = _NEW_RUN.format(config.run.another)
    there = steps(config.directory / "checkpoints")
    if there:
        raise UserError(
            f"{config.directory} has checkpoints already (steps {', '.join(map(str, there))}); "
            f"{another}"
        )
    if (config.directory / "config.toml").exists():
        raise UserError(f"{config.directory} has a run already, without checkpoints; {another}")


def _clear(directory: Path) -> None:
    """Remove the whole checkpoint of a conversion that was killed; a half one goes with a save."""
    if not (directory / CONVERTING).exists():
        return
    checkpoints = directory / "checkpoints"
    for step in steps(checkpoints):
        delete(checkpoints, step)
    (directory / SAVED).unlink(missing_ok=True)


def _check_finite(arrays: Mapping[str, NDArray[Any]]) -> None:
    """A run goes on from nothing that is not finite; better said now than then."""
    bad = [path for path, array in arrays.items() if _is_bad(tuple(path.split("/")), array)]
    if bad:
        raise UserError(f"not finite, and nothing to go on from: {', '.join(bad)}")


def _is_bad(path: tree.Path, array: NDArray[Any]) -> bool:
    if path[0] not in FINITE:
        return False
    wrong = np.isnan(array) if may_be_infinite(path, array.shape) else ~np.isfinite(array)
    return bool(np.any(wrong))


@contextmanager
def _opened(config: Config) -> Iterator[tuple[Program, Hooks]]:
    with config.placing():
        run, hooks = opened(config)
        with closing(run, hooks):
            if run.processes > 1:
                raise UserError("convert runs in one process; leave [distributed] out")
            yield built(run, hooks), hooks


def _state(
    program: Program,
    plan: Plan,
    arrays: Mapping[str, NDArray[Any]],
    given: int | None,
    fresh_optimizer: bool,
) -> TrainState:
    """Place what was converted, and derive the rest from the parameters, as a new run does."""
    abstract, shardings = program.abstract_state, program.shardings.state
    step = np.asarray(arrays["step"] if given is None else given, np.int32)
    arrays = {**arrays, "step": step, **dict.fromkeys(plan.counted, step)}
    if plan.begun:
        first = {
            "/".join(path): leaf for path, leaf in tree.by_path(program.initial_state()).items()
        }
        arrays |= {path: first[path] for path in plan.begun}
    params = _part(arrays, abstract, "params")
    derive = jax.jit(program.optimizer.init, out_shardings=shardings.opt_state)
    key = jax.jit(lambda: program.initial_state().key, out_shardings=shardings.key)
    extra = jax.jit(program.step.init, out_shardings=shardings.extra)
    return TrainState(
        step=_part(arrays, abstract, "step"),
        params=params,
        buffers=_part(arrays, abstract, "buffers"),
        opt_state=derive(params) if fresh_optimizer else _part(arrays, abstract, "opt_state"),
        key=key(),
        extra=extra(params),
    )


def _part(arrays: Mapping[str, Any], like: TrainState, name: str) -> Any:
    """Return a part of the state on the devices, in the run's own containers."""
    wanted = getattr(like, name)
    targets = tree.targets(tree.by_path(wanted))
    placed = {
        path: jax.device_put(arrays["/".join((name, *path))], target.sharding)
        for path, target in targets.items()
    }
    return tree.assembled(placed, wanted)
