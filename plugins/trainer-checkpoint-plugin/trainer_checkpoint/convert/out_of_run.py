"""From a run to a checkpoint of other code: as the run has its arrays, or as another has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import jax
import numpy as np
import orbax.checkpoint as ocp
from numpy.typing import NDArray

from trainer_checkpoint import stored, tree
from trainer_checkpoint.convert.described import described_checkpoint, described_program
from trainer_checkpoint.convert.mapping import Mapping as Rules
from trainer_checkpoint.convert.plan import Entry, Plan, Spec
from trainer_checkpoint.convert.planning import make_plan
from trainer_checkpoint.quiet import quiet
from trainer_core.cli.reading import Reading, read_run
from trainer_core.errors import UserError
from trainer_core.signals import interruptible


@attrs.frozen(kw_only=True)
class Written:
    """What was done, or would be.

    Attributes:
        plan: what became of every array of the run.
        specs: shape and dtype of the arrays of the new checkpoint, by path.
        directory: of the new checkpoint.
        step: of the run.
    """

    plan: Plan
    specs: Mapping[str, Spec]
    directory: Path
    step: int


def convert_out_of_run(
    run: Path,
    overrides: Sequence[str],
    directory: Path,
    like: Path | None,
    rules: Rules,
    *,
    fresh_optimizer: bool = False,
    dry: bool = False,
) -> Written:
    """Write the newest state of a run as an Orbax checkpoint of a tree.

    Args:
        run: the run's directory.
        overrides: on top of its config.
        directory: to be written; it must not exist, or be empty.
        like: a checkpoint whose form the new one takes: its paths, shapes, dtypes, lists; None:
            that of the run.
        rules: the mapping by which a checkpoint like that becomes such a run.
        fresh_optimizer: the mapping leaves the optimizer out.
        dry: only plan; nothing is written.

    Raises:
        UserError: it does not fit, or the directory is in use; nothing was written.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UserError(f"{directory} exists already; --to takes a new directory")
    form = None if like is None else interruptible(lambda: stored.look(like))
    with read_run(run, overrides) as reading:
        if form is None:
            plan, specs = _own_form(reading)
        else:
            target = described_program(reading.program)
            origin = described_checkpoint(form, rules.prefix, target.axes)
            forward = make_plan(origin, target, rules, fresh_optimizer)
            plan, specs = forward.inverse(), origin.specs
        if not dry:
            interruptible(lambda: _write(directory, _filled(plan, reading, form)))
        return Written(plan=plan, specs=specs, directory=directory, step=reading.step)


def _own_form(reading: Reading) -> tuple[Plan, Mapping[str, Spec]]:
    """Parameters, buffers, optimizer and step, as the run has them."""
    described = described_program(reading.program)
    specs = {
        path: spec for path, spec in described.specs.items() if path not in described.side.run_only
    }
    entries = tuple(Entry((path,), (path,)) for path in specs)
    return Plan(entries, ignored=described.side.run_only), specs


def _filled(plan: Plan, reading: Reading, form: stored.Stored | None) -> Any:
    made = plan.carry_out(_arrays(reading))
    if form is not None:
        return stored.filled(form, made)
    return tree.nested({tuple(path.split("/")): array for path, array in made.items()})


def _arrays(reading: Reading) -> dict[str, NDArray[Any]]:
    written = tree.written(tree.by_path(reading.state))
    return {"/".join(path): np.asarray(jax.device_get(leaf)) for path, leaf in written.items()}


def _write(directory: Path, arrays: Any) -> None:
    directory.parent.mkdir(parents=True, exist_ok=True)
    if directory.is_dir():
        directory.rmdir()  # it is empty, and Orbax makes its own
    try:
        with quiet(), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            checkpointer.save(directory.absolute(), ocp.args.PyTreeSave(arrays))
    except OSError as error:
        raise UserError(f"{directory} cannot be written: {error}") from error
