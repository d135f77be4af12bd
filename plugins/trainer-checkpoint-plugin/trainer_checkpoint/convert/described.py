"""What the two sides of a conversion have: a checkpoint on disk, and the program of a run."""

from __future__ import annotations

from collections.abc import Collection

from trainer_checkpoint import tree
from trainer_checkpoint.convert.plan import Spec
from trainer_checkpoint.convert.planning import Described
from trainer_checkpoint.convert.sides import side_of_others, side_of_run
from trainer_checkpoint.stored import Stored
from trainer_core.errors import UserError
from trainer_core.program import Program
from trainer_core.types import ParamInfo


def described_checkpoint(stored: Stored, prefix: str | None, known: Collection[str]) -> Described:
    """Describe a checkpoint.

    Args:
        stored: as it was looked at.
        prefix: of the mapping.
        known: names of the model's arrays on the other side.

    Raises:
        UserError: no array's path begins with the prefix.
    """
    specs = {path: Spec(leaf.shape, leaf.dtype) for path, leaf in stored.leaves.items()}
    ours = stored.meta is not None and prefix is None
    side = side_of_run(specs) if ours else side_of_others(specs, prefix, known)
    config = None if stored.meta is None else stored.meta["config"]
    return Described(str(stored.path), specs, side, config=config)


def described_program(program: Program) -> Described:
    """Describe the state of a run."""
    leaves = tree.targets(tree.by_path(program.abstract_state))
    specs = {
        "/".join(path): Spec(tuple(leaf.shape), str(leaf.dtype)) for path, leaf in leaves.items()
    }
    model = program.model
    infos = {**tree.flat(model.params), **tree.flat(model.buffers)}
    axes = {"/".join(path): _stack_axis(info) for path, info in infos.items()}
    name = f"the run {program.run.directory}"
    return Described(name, specs, side_of_run(specs), axes, program.run.config)


def step_of(stored: Stored, described: Described, step: int | None) -> int | None:
    """Return the step of a checkpoint that has no array for it; None where it has one.

    Args:
        stored, described: the checkpoint.
        step: what the user says.

    Raises:
        UserError: nobody says, or the user says though the checkpoint does.
    """
    if described.side.steps:
        if step is not None:
            raise UserError(
                f"--step {step}: {stored.path} has its own, in {described.side.steps[0]}"
            )
        return None
    if step is None and stored.path.name.isdigit():  # as a CheckpointManager names its folders
        return int(stored.path.name)
    if step is None:
        raise UserError(f"{stored.path} does not say how many steps were made; give --step N")
    return step


def _stack_axis(info: ParamInfo) -> int | None:
    return next((at for at, axis in enumerate(info.axes) if axis.role == "stack"), None)
