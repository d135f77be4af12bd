"""What to say where a checkpoint does not fit: why, and all paths of each kind."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

from trainer_checkpoint.convert.sides import side_of_run
from trainer_checkpoint.folding import Line, Owners, folded
from trainer_core.directory import differences
from trainer_core.errors import UserError

if TYPE_CHECKING:
    from trainer_core.run import Run

_SHAPING = ("model", "data", "optimizer", "step", "accumulate", "plugins")  # tables

Described = Mapping[str, Mapping[str, Any]]


def check_same(
    saved: Described,
    wanted: Described,
    where: str,
    old: Mapping[str, Any],
    run: Run,
) -> None:
    """Check that a checkpoint has the arrays that a run needs.

    Args:
        saved, wanted: `tree.described` of the checkpoint's leaves, and of those of the run.
        where: the checkpoint's path, for the message.
        old: the config that the checkpoint was written with.
        run: the run.

    Raises:
        UserError: it has not; says what differs in the configs, and in the arrays.
    """
    missing = {path: _line(path, _text(wanted[path])) for path in wanted.keys() - saved.keys()}
    unexpected = {path: _line(path, _text(saved[path])) for path in saved.keys() - wanted.keys()}
    different = {
        path: _line(path, f"is {_text(saved[path])}, this run has {_text(wanted[path])}")
        for path in wanted.keys() & saved.keys()
        if _text(wanted[path]) != _text(saved[path])
    }
    if not (missing or unexpected or different):
        return
    paths = {*saved, *wanted}
    owners = side_of_run(paths).owners
    last = {path for path in paths if not path.startswith(("params/", "buffers/"))}
    lines = [
        f"{where} is of another model or optimizer than this run; nothing was written.",
        *changed_config(old, run.config, run.may_change),
        *listed("missing", "this run needs it, the checkpoint lacks it", missing, owners, last),
        *listed("unexpected", "the checkpoint has it, this run does not", unexpected, owners, last),
        *listed("different", "of another shape or dtype", different, owners, last),
        "Give the run another run.name, or the config that the checkpoint was made with. Or make "
        "a new run of this one: `trainer convert RUN RECIPE.toml run.name=NAME`, with --mapping "
        "FILE.toml for other names or --fresh-optimizer for another optimizer.",
    ]
    raise UserError("\n".join(lines))


def changed_config(
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    may_change: Callable[[str], bool] = lambda key: False,
) -> list[str]:
    """Return what may explain that the arrays of two runs differ.

    Args:
        old, new: their configs.
        may_change: whether a dotted key explains nothing: what is trained depends not on it.
    """
    found = differences(_shaping(old), _shaping(new))
    lines = [f"  {line}" for key, line in found.items() if not may_change(key)]
    if not lines:
        return ["The config is the same: what the code makes of it has changed."]
    return ["It was written with another config:", *lines]


def _shaping(config: Mapping[str, Any]) -> dict[str, Any]:
    tables = {name: table for name, table in config.items() if name in _SHAPING}
    # One that is off shapes nothing, and commands that read a run switch the display off.
    plugins = tables.pop("plugins", {})
    on = {name: plugin for name, plugin in plugins.items() if plugin is not False}
    return tables | ({"plugins": on} if on else {})


def listed(
    kind: str,
    meaning: str,
    problems: Mapping[str, Line],
    owners: Owners,
    last: Collection[str],
) -> list[str]:
    """Return a head and all of some problems, by path.

    Args:
        kind, meaning: of the problems.
        problems: path to what is wrong with it.
        owners, last: as `folded` takes them.
    """
    if not problems:
        return []
    lines = folded(problems, owners, last)
    return [f"{kind}: {len(problems)} ({meaning})", *(f"  {line}" for line in lines)]


def _line(path: str, text: str) -> Line:
    return Line((path,), (f" {text}",))


def _text(leaf: Mapping[str, Any]) -> str:
    return f"{leaf['dtype']}[{', '.join(map(str, leaf['shape']))}]"
