"""The run directory: whose it is, and the record of what runs in it."""

from __future__ import annotations

import json
import logging
import os
import platform
import subprocess
import time
import tomllib
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import tomli_w

from trainer_core.config import Config
from trainer_core.defaults.jsonl import last_reported
from trainer_core.errors import RunError, UserError
from trainer_core.files import parsed, replace
from trainer_core.hook_checks import only_watches
from trainer_core.recipe import flatten
from trainer_core.saved import SAVED, last_saved
from trainer_core.settings import setting_fields, shown

if TYPE_CHECKING:
    from trainer_core.lock import RunLock
    from trainer_core.program import Program
    from trainer_core.run import Run

OPTIMIZER = "optimizer.json"  # what the optimizer does with each parameter
CONVERTING = ".converting"  # there until `trainer convert` has written all of the run
STACK = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "pluggy")
logger = logging.getLogger("trainer_core")
_SEEN_WITHIN = 10.0  # seconds: network file systems show a new file late
_COMPILING = 86_400.0  # seconds
_TRAINING = "start a new run with {}, or go on with the new values by --accept-changes"


def check_directory(config: Config, accept_changes: bool, remedy: str = _TRAINING) -> None:
    """Refuse a directory that cannot be written, or that belongs to another config.

    Args:
        config: of the run.
        accept_changes: another config is no reason.
        remedy: what to do about it; `{}` stands for the settings that give another run.

    Raises:
        UserError: with the keys that differ; nothing was touched.
    """
    directory = config.directory
    nearest = next(each for each in (directory, *directory.absolute().parents) if each.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        kind = "no folder" if not nearest.is_dir() else "not writable"
        raise _unwritable(config, f"{nearest} is {kind}")
    changes = _changes(config)
    if not accept_changes:
        _check_recorded(config, remedy.format(config.run.another))
    if changes and not accept_changes:
        listed = "".join(f"\n  {line}" for line in changes)
        raise UserError(
            f"{directory} belongs to a run with another config:{listed}\n"
            f"{remedy.format(config.run.another)}"
        )


def write_directory(
    config: Config, program: Program, lock: RunLock, first: int, converting: bool = False
) -> None:
    """Write config.toml, versions.json and optimizer.json; on process 0 alone.

    Args:
        config: of the run.
        program: what it is made of.
        lock: of the directory; taken first, where it is not.
        first: the step from which the run goes on; 0 where no checkpoint was found.
        converting: its checkpoint is yet to be written; `CONVERTING` stands there until the caller
            removes it, so that no run begins at step 0 where that is never done.

    Raises:
        RunError: none was found, and saved.json or metrics.jsonl says that there were some, or a
            conversion was to write one.
        UserError: the file system says no, though permissions said yes; or the directory is not
            the same folder for all processes, which all write checkpoints there.
    """
    run = program.run
    if run.is_main:
        if first == 0 and not converting:
            _check_converted(config)
        if first == 0:
            _check_beginning(config)
        else:
            _say_what_is_gone(config.directory, first)
            _say_if_data_changed(config, program)
        _write(config, program, lock, converting)
    if run.processes > 1 and config.chosen["checkpoint"].candidate.name != "none":
        _check_shared(run)


def _write(config: Config, program: Program, lock: RunLock, converting: bool) -> None:
    run = program.run
    lock.check()
    try:
        run.directory.mkdir(parents=True, exist_ok=True)
        late = not lock.is_taken
        lock.take()
        if late and (run.directory / "config.toml").exists():
            raise UserError(
                f"another run began in {str(run.directory)!r} while this one was compiled, and is "
                f"over; the same command again goes on where it ended",
                "run.directory",
                "run.name",
            )
        if converting:
            replace(run.directory / CONVERTING, "")
        else:  # it was whole but for this
            (run.directory / CONVERTING).unlink(missing_ok=True)
        # Not where the processes were: a later command would wait for them.
        table = {name: values for name, values in config.table.items() if name != "distributed"}
        replace(run.directory / "config.toml", tomli_w.dumps(table))
        made_of = versions(config) | {"devices": run.devices, "data": _summary(program)}
        replace(run.directory / "versions.json", json.dumps(made_of, indent=2) + "\n")
        optimizer = json.dumps(program.optimizer_record, indent=2)
        replace(run.directory / OPTIMIZER, optimizer + "\n")
    except OSError as error:
        raise _unwritable(config, str(error)) from error


def _check_converted(config: Config) -> None:
    if (config.directory / CONVERTING).exists():
        raise RunError(
            f"`trainer convert` ended in {config.directory} before its checkpoint was written: the "
            f"same convert again writes it; to train from the start, start another run with "
            f"{config.run.another}, or move this directory away"
        )


def _check_beginning(config: Config) -> None:
    """Refuse to begin a run again whose checkpoints are gone.

    One that was killed before its first was written may be. Where its plugin notes none, what it
    reported tells: the second waits for the first, so that a run which has gone on after the
    second had one.
    """
    remedy = (
        f"put its checkpoints back; to train from the start, start another run with "
        f"{config.run.another}, or move"
    )
    if saved := last_saved(config.directory):
        raise RunError(
            f"{config.directory} had a checkpoint of step {saved}, as its {SAVED} says, and has "
            f"none: {remedy} this directory away"
        )
    table = _recorded_config(config) or {}
    every = int(table.get("checkpoint", {}).get("every", 0))
    made, _ = last_reported(config.directory / "metrics.jsonl")
    if 0 < 2 * every < made:
        raise RunError(
            f"{config.directory} has made {made} steps, as its metrics.jsonl says, with a "
            f"checkpoint every {every}, and has none: {remedy} metrics.jsonl away"
        )


def _say_what_is_gone(directory: Path, first: int) -> None:
    """Say that newer checkpoints are not used, where no reported line lies past this step.

    Where one does, metrics.jsonl says so, as it sets that aside.
    """
    saved = last_saved(directory)
    reported, _ = last_reported(directory / "metrics.jsonl")
    if first < saved and reported <= first:
        logger.warning(
            "%s had a checkpoint of step %d, as its %s says, and the newest that can be used is "
            "of step %d, from which the run goes on; where checkpoints are missing, stop the run "
            "and put them back",
            directory,
            saved,
            SAVED,
            first,
        )


def _say_if_data_changed(config: Config, program: Program) -> None:
    """Say that the same settings lead to other data than before, as far as its summary tells."""
    before, now = recorded(config.directory, "data"), _summary(program)
    same_settings = (_recorded_config(config) or {}).get("data") == config.table["data"]
    if same_settings and before is not None and before != now:
        logger.warning(
            "the data is another than when %s was last trained: it was %s, and is %s; the run goes "
            "on with what is there now, and may see some examples twice and others never",
            config.directory,
            *(
                ", ".join(line for line in one if line not in other) or "nothing else"
                for one, other in ((before, now), (now, before))
            ),
        )


def _summary(program: Program) -> list[str]:
    return [f"{name} {text}" for name, text in program.data.summary.items()]


def _check_shared(run: Run) -> None:
    # One whose compile cache was cold may come many minutes later; one that is dead is noticed.
    name = run.gather(uuid4().hex if run.is_main else None, seconds=_COMPILING)[0]
    mark = run.directory / f".seen-by-all-{name}"
    if run.is_main:
        for old in run.directory.glob(".seen-by-all-*"):  # of one that was killed here
            old.unlink()
        mark.touch()
    run.agree(None)  # it is there
    deadline = time.monotonic() + _SEEN_WITHIN
    while not (seen := mark.exists()) and time.monotonic() < deadline:
        time.sleep(0.1)
    others = run.gather(None if seen else platform.node())
    if run.is_main:
        mark.unlink()
    if others:
        places = ", ".join(f"process {each} on {others[each]}" for each in others)
        raise UserError(
            f"the run directory {str(run.directory)!r} is another folder for {places} than for "
            f"process 0; all of them write checkpoints there: give one that they share by "
            f"run.directory=PATH",
            "run.directory",
            "run.name",
        )


def versions(config: Config) -> dict[str, Any]:
    """Return what a run is made of: plugins, JAX stack, Python, git commit.

    And what a later command must know: which of the `[plugins]` change training, and the folders
    in which the user's own modules are.
    """
    return {
        "plugins": {table: chosen.candidate.origin for table, chosen in config.chosen.items()},
        "changing training": [
            table
            for table, chosen in config.chosen.items()
            if table.startswith("plugins.") and not only_watches(type(chosen.plugin))
        ],
        "import folders": [str(folder.resolve()) for folder in config.folders],
        "stack": {name: found for name in STACK if (found := _version(name))},
        "trainer-core": _version("trainer-core"),
        "python": platform.python_version(),
        "commit": _commit(),
    }


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str]:
    """Return a line for each key in which two configs differ: `model.layers: 2 -> 4`.

    Where another implementation was chosen, settings that only one of the two has are left out.
    """
    before, after = dict(flatten(old)), dict(flatten(new))
    # An empty table is told by the keys that the other has in it.
    every = {*before, *after}
    filled = {key[:at] for key in every for at, letter in enumerate(key) if letter == "."}
    told = {key for key in filled & every if {} in (before.get(key), after.get(key))}
    keys = sorted(key for key in every - told if before.get(key) != after.get(key))
    replaced = tuple(key.removesuffix("use") for key in keys if key.endswith(".use"))
    return {
        key: f"{key}: {_shown(before, key)} -> {_shown(after, key)}"
        for key in keys
        if key.endswith(".use") or not key.startswith(replaced) or (key in before and key in after)
    }


def recorded(directory: Path, name: str) -> Any:
    """Return what a run directory's versions.json has under a name; None where it has nothing.

    Args:
        directory: of the run.
        name: what is looked for: a text, or a list of them.

    Raises:
        UserError: the file cannot be read.
    """
    path = directory / "versions.json"
    try:
        value = parsed(path.read_bytes()).get(name)
        texts = value if isinstance(value, list) else [value]
        if value is not None and not all(isinstance(each, str) for each in texts):
            raise ValueError(f"{name!r} is {value!r}")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read: {error}; put it back, or delete it: the next run writes it "
            f"anew, and does not know which plugins changed training before"
        ) from error
    return value


def _unwritable(config: Config, reason: str) -> UserError:
    place = config.origins.get("run.directory", config.origins["run.name"])
    return UserError(
        f"the run directory {str(config.directory)!r} ({place}) cannot be written: {reason}; "
        f"choose another: run.directory=PATH"
    )


def _recorded_config(config: Config) -> dict[str, Any] | None:
    path = config.directory / "config.toml"
    if not path.exists():
        return None
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # no UTF-8, or no TOML
        raise UserError(
            f"{path} cannot be read: {error}; restore it, or start a new run with "
            f"{config.run.another}"
        ) from error


def _changes(config: Config) -> list[str]:
    old = _recorded_config(config)
    changes = {} if old is None else differences(old, config.table)
    return [line for key, line in changes.items() if not may_change(config, key)]


def _check_recorded(config: Config, remedy: str) -> None:
    """Checkpoints without the config that made them may be anyone's."""
    directory = config.directory
    saved = sorted(
        int(path.name)
        for path in (directory / "checkpoints").glob("[0-9]*")
        if path.name.isdecimal()
    )
    if not saved or (directory / "config.toml").exists():
        return
    raise UserError(
        f"{directory} has checkpoints (steps {', '.join(map(str, saved))}), and no config.toml, "
        f"which says whose they are: put it back, or move the folder checkpoints away; where "
        f"other code wrote them, `trainer convert {directory}/checkpoints RECIPE.toml` makes a run "
        f"of the newest; else {remedy}",
        "run.directory",
        "run.name",
    )


def may_change(config: Config, key: str) -> bool:
    """Return whether a run goes on, without being asked, where a dotted key has changed."""
    table, _, rest = key.partition(".")
    if table == "plugins":
        name, _, rest = rest.partition(".")
        chosen = config.chosen.get(f"plugins.{name}")
        if f"plugins.{name}" in (recorded(config.directory, "changing training") or ()):
            if chosen is None:
                return False
        elif chosen is None or only_watches(type(chosen.plugin)):
            return True
        cls = type(chosen.plugin)
    elif table in config.chosen:
        cls = type(config.chosen[table].plugin)
    else:
        cls = {"run": type(config.run), "distributed": type(config.distributed)}.get(table, object)
    field = setting_fields(cls).get(rest.partition(".")[0]) if cls is not object else None
    return field is not None and bool(field.metadata.get("may_change"))


def _shown(table: Mapping[str, Any], key: str) -> str:
    return shown(table[key]) if key in table else "(not set)"


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the code in the working directory; None where that is no git checkout."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
