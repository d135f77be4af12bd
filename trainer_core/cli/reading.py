"""Open a run to read it: its config, its program, its newest state. Writes nothing."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from trainer_core.cli.waiting import waiting
from trainer_core.errors import UserError
from trainer_core.imports import from_here
from trainer_core.suggest import did_you_mean
from trainer_core.terminal.errors import say_note

if TYPE_CHECKING:
    from trainer_core.cli.parsing import Parser
    from trainer_core.config import Config
    from trainer_core.program import Program
    from trainer_core.types import TrainState


@attrs.frozen
class Reading:
    """A run as it stands on disk.

    Attributes:
        step: how many steps were made until its newest checkpoint.
    """

    program: Program
    state: TrainState
    step: int


@contextmanager
def read_run(
    directory: Path, overrides: Sequence[str], params: str | None = None
) -> Iterator[Reading]:
    """Open the newest checkpoint of a run, by the hooks that the run itself would use.

    Args:
        directory: of the run.
        overrides: `KEY=VALUE`, on top of what the run was made with.
        params: the name in `state.extra` of other parameters to take for the trained ones.

    Raises:
        UserError: it is no run directory, it has no checkpoint, or the overrides do not fit it.
    """
    config = _config(directory, overrides)
    with ExitStack() as stack:
        with waiting("starting") as phase, config.placing():
            from trainer_core.opening import built, closing, opened
            from trainer_core.signals import interruptible

            run, hooks = opened(config)
            run = attrs.evolve(run, is_read=True)
            stack.enter_context(closing(run, hooks))
            phase("building")
            program = built(run, hooks)
            phase("restoring")
            run.pass_by("restoring")
            like = program.abstract_state
            state = interruptible(lambda: hooks.restore(run=run, like=like, data=program.data))
        if state is None:
            raise _has_none(directory, config)
        if params is not None:
            state = attrs.evolve(state, params=_kept(state, params))
        run.pass_by("evaluating")
        yield Reading(program, state, int(state.step))


def _has_none(directory: Path, config: Config) -> UserError:
    use = config.chosen["checkpoint"].candidate.name
    said = f"[checkpoint] use = {json.dumps(use)}"
    if use == "none":
        return UserError(
            f"{directory} has no checkpoint, and will have none: {said} "
            f"({config.origins['checkpoint.use']}); train a run with another"
        )
    return UserError(f"{directory} has no checkpoint yet ({said}); it has one after its first save")


def params_argument(parser: Parser) -> None:
    """Declare `--params`."""
    parser.add_argument(
        "--params",
        metavar="NAME",
        help="the parameters that a plugin of the run keeps under this name, such as an average",
    )


def _kept(state: TrainState, name: str) -> Any:
    """Return parameters that a step, or a wrapper of it, keeps beside the trained ones."""
    import jax

    def shapes(tree: Any) -> Any:
        leaves, structure = jax.tree.flatten(tree)
        return structure, [leaf.shape for leaf in leaves]

    kept = [key for key, tree in state.extra.items() if shapes(tree) == shapes(state.params)]
    if name not in kept:
        which = f"it keeps: {', '.join(kept)}" if kept else "it keeps the trained ones alone"
        raise UserError(
            f"--params={name}: the run keeps no parameters of that name"
            f"{did_you_mean(name, kept)}; {which}"
        )
    # As the compiled functions expect them, whatever the wrapper keeps.
    return jax.tree.map(
        lambda own, trained: jax.device_put(own.astype(trained.dtype), trained.sharding),
        state.extra[name],
        state.params,
    )


def recipe_of(directory: Path) -> Path:
    """Return the resolved config of a run.

    Raises:
        UserError: it is no run directory; runs that may be meant are named.
    """
    recipe = directory / "config.toml"
    if not recipe.is_file():
        what = "is no run directory: it has no config.toml"
        raise UserError(
            f"{directory} {what if directory.exists() else 'does not exist'}{_runs_near(directory)}"
        )
    return recipe


def _config(directory: Path, overrides: Sequence[str]) -> Config:
    from trainer_core.config import load_config
    from trainer_core.directory import recorded

    recipe = recipe_of(directory)
    # A model of the user's own lies where the run was started from; a run that came from somebody
    # else shall not lead to any other place.
    started = map(Path, recorded(directory, "import folders") or ())
    near = [each for each in started if _is_near(each, directory)]
    return load_config(
        recipe,
        [
            # It may have been moved since, and it shall not show what a training run shows.
            f"run.directory={json.dumps(str(directory))}",
            "plugins.progress=false",
            *_in_one_part(recipe),
            *overrides,
        ],
        say_imports,
        near,
    )


def _in_one_part(recipe: Path) -> list[str]:
    """Nothing is accumulated in reading: microbatches shall refuse no batch size."""
    accumulate = tomllib.loads(recipe.read_text(encoding="utf-8")).get("accumulate", {})
    return ["accumulate.microbatches=1"] if "microbatches" in accumulate else []


def say_imports(found: Mapping[str, Path]) -> None:
    """Say on stderr what a config imports, before any of it runs: it may be a stranger's."""
    for path, file in found.items():
        say_note(f"imports {path} from {from_here(file)}")


def _is_near(folder: Path, directory: Path) -> bool:
    """Whether a folder holds the run directory, or lies in the current one."""
    where = folder.resolve()
    return directory.resolve().is_relative_to(where) or where.is_relative_to(Path.cwd())


def _runs_near(directory: Path) -> str:
    folders = [directory, directory.parent, Path("runs")]
    found = {path.parent for folder in folders for path in folder.glob("*/config.toml")}
    named = [run for run in found if run.name == directory.name]
    if named:
        return f" (did you mean {named[0]}?)"
    newest = sorted(found, key=lambda run: -run.stat().st_mtime)[:5]
    return f"; the newest runs are: {', '.join(map(str, newest))}" if newest else ""
