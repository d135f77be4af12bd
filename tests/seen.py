"""A plugin that leaves behind which rows a run was given, and which parameters it restored."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import jax
import numpy as np

from trainer_core.plugin import hookimpl, plugin


@plugin
class Seen:
    """Writes them beside the run's directory, one file a process and a run."""

    @hookimpl(wrapper=True)
    def build_data(self, run: Any) -> Any:
        source = yield
        batch = source.batch
        place = Path(f"rows-{run.settings.steps}-{run.process}")

        def noted(step: int) -> Any:
            given = batch(step)
            rows = [sha256(row.tobytes()).hexdigest() for row in given["tokens"]]
            with place.open("a") as file:
                file.write(json.dumps([step, rows]) + "\n")
            return given

        source.batch = noted
        return source

    @hookimpl(wrapper=True)
    def restore(self, run: Any) -> Any:
        state = yield
        if state is not None:
            shards = {}
            for path, leaf in jax.tree_util.tree_flatten_with_path(state.params)[0]:
                name = "/".join(["params", *(str(each.key) for each in path)])
                for shard in leaf.addressable_shards:
                    starts = ",".join(str(each.start or 0) for each in shard.index)
                    shards[f"{name}@{starts}"] = np.asarray(shard.data)
            np.savez(f"restored-{run.settings.steps}-{run.process}.npz", **shards)
        return state


def rows_of(folder: Path, first: int, steps: int) -> Counter[str]:
    """Return how often each row was trained on, by a run that went from `first` to `steps`.

    The source was asked for more, ahead of time, and twice for the first.
    """
    found: Counter[str] = Counter()
    for path in folder.glob(f"rows-{steps}-*"):
        given = dict(json.loads(line) for line in path.read_text().splitlines())
        for step in range(first, steps):
            found.update(given[step])
    return found


def restored(folder: Path, steps: int, like: dict[str, np.ndarray]) -> Iterator[str]:
    """Yield the path of each array whose restored shards are, to the bit, all of that in `like`."""
    shards: dict[str, dict[str, np.ndarray]] = {}
    for path in folder.glob(f"restored-{steps}-*.npz"):
        for key, shard in np.load(path).items():
            name, _, starts = key.partition("@")
            shards.setdefault(name, {})[starts] = shard
    for name, parts in shards.items():
        covered = np.zeros(like[name].shape, bool)
        for starts, part in parts.items():
            begins = [int(each) for each in starts.split(",") if each]
            place = tuple(slice(at, at + size) for at, size in zip(begins, part.shape, strict=True))
            if part.tobytes() != like[name][place].tobytes():
                break
            covered[place] = True
        else:
            if covered.all():
                yield name
