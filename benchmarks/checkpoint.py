"""What saving and restoring cost, beside plain Orbax in the same process.

A save has two times: until the loop goes on, and until it is on the disk. The digest is part of
both of ours. Memory is that of processes of their own, whose peak is the operating system's.

    uv run python benchmarks/checkpoint.py [--mib 1024] [--rounds 5] [--leaf 16]
    uv run python benchmarks/checkpoint.py --digest  # our own save with it and without, in turn
    uv run python benchmarks/checkpoint.py --damage 40  # each file, at so many offsets
"""

from __future__ import annotations

import argparse
import json
import logging
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(
    0, str(Path(__file__).parents[1] / "plugins" / "trainer-checkpoint-plugin" / "tests")
)

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from checkpointed import like, restore, run_in
from rich.console import Console
from rich.table import Table
from test_damage import FUZZED, tally
from trainer_checkpoint import contents, tree
from trainer_checkpoint.digest import Check, checks
from trainer_checkpoint.plugin import Orbax

from trainer_core.types import Data, TrainState

SAVES = 50


def state_of(mib: int, leaf: int) -> TrainState:
    """Parameters, and twice as much in the optimizer's state, as AdamW has it.

    Args:
        mib: in all.
        leaf: MiB of an array; where it is all, there is one parameter, and no other array.
    """
    keys = iter(jax.random.split(jax.random.key(0), mib // leaf + 1))

    def part(name: str) -> dict[str, jax.Array]:
        count = mib // leaf // 3 if leaf < mib else int(name == "w")
        return {
            f"{name}_{index}": jax.random.normal(next(keys), (leaf, 2**18), jnp.float32)
            for index in range(count)
        }

    return TrainState(
        step=jnp.int32(0),
        params=part("w"),
        buffers={},
        opt_state={"mu": part("mu"), "nu": part("nu")},
        key=jax.random.key(1),
        extra={},
    )


class Ours:
    """The plugin, as a run uses it."""

    def __init__(self, folder: Path) -> None:
        self.run, self.plugin = run_in(folder), Orbax(keep=1)

    def save(self, step: int, state: TrainState) -> None:
        self.plugin.save(self.run, step, state, Data())

    def wait(self) -> None:
        self.plugin._writer.wait()

    def restore(self, step: int, state: TrainState) -> None:
        jax.block_until_ready(restore(self.run, like(state, self.run.mesh)))


class Undigested(Ours):
    """The plugin, with digests that cost nothing."""

    def save(self, step: int, state: TrainState) -> None:
        with patch.object(contents, "begin_checks", _no_checks):
            super().save(step, state)


def _no_checks(arrays: Any, *_: Any) -> Callable[[], dict[tree.Path, Check]]:
    return lambda: dict.fromkeys(arrays, Check("00000000", is_finite=True))


class Plain:
    """Orbax's own asynchronous checkpointer, with what it does by default."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.handler = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler())

    def save(self, step: int, state: TrainState) -> None:
        arrays = tree.nested(tree.written(tree.by_path(state)))
        self.handler.save(self.folder / str(step), args=ocp.args.PyTreeSave(arrays))

    def wait(self) -> None:
        self.handler.wait_until_finished()

    def restore(self, step: int, state: TrainState) -> None:
        targets = tree.nested(tree.targets(tree.by_path(like(state, run_in(Path()).mesh))))
        shardings = jax.tree.map(lambda leaf: leaf.sharding, targets)
        arguments = ocp.checkpoint_utils.construct_restore_args(targets, shardings)
        found = self.handler.restore(
            self.folder / str(step), args=ocp.args.PyTreeRestore(targets, restore_args=arguments)
        )
        jax.block_until_ready(found)


def timed(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def digested(state: TrainState, rounds: int, folder: Path) -> None:
    """Print what a save takes with its digests and without, in turn."""
    both = {"with": Ours(folder / "with"), "without": Undigested(folder / "without")}
    found: dict[str, list[float]] = {}
    for step in range(1, rounds + 2):  # the first compiles, and warms the disk
        for name in sorted(both, reverse=bool(step % 2)):
            loop = timed(partial(both[name].save, step, state))
            seconds = {"loop": loop, "disk": loop + timed(both[name].wait)}
            for kind, value in seconds.items():
                found.setdefault(f"{kind} {name}", []).append(value)
    table = Table("", "with digests", "without", "ratio")
    for kind, said in {
        "loop": "until the loop goes on",
        "disk": "until it is on the disk",
    }.items():
        add_row(table, said, *(found[f"{kind} {name}"][1:] for name in both))
    Console(width=100).print(f"{rounds} rounds", table)


def damaged(offsets: int, folder: Path) -> None:
    """Print how often damage of each kind is found, and how often it is harmless."""
    logging.getLogger("trainer_core").setLevel(logging.ERROR)
    table = Table("damage", "found", "harmless")
    for how in FUZZED:
        table.add_row(how, *map(str, tally(run_in(folder / how), how, offsets)))
    Console(width=100).print(f"{offsets} offsets in each file", table)


def add_row(table: Table, said: str, ones: list[float], others: list[float]) -> None:
    """Medians, and the median of the ratios."""
    ratio = statistics.median(a / b for a, b in zip(ones, others, strict=True))
    medians = [f"{statistics.median(each):.3f} s" for each in (ones, others)]
    table.add_row(said, *medians, f"{ratio:.2f}")


def measure(state: TrainState, rounds: int, folder: Path) -> dict[str, list[float]]:
    """Seconds of each kind, one a round; the two take turns."""
    arrays = tree.written(tree.by_path(state))
    both = {"ours": Ours(folder / "ours"), "Orbax": Plain(folder / "plain")}
    found: dict[str, list[float]] = {}
    for step in range(1, rounds + 2):  # the first compiles, and warms the disk
        for name in sorted(both, reverse=bool(step % 2)):
            one: Any = both[name]
            loop = timed(partial(one.save, step, state))
            seconds = {"loop": loop, "disk": loop + timed(one.wait)}
            seconds["restore"] = timed(partial(one.restore, step, state))
            if step > 1:
                for kind, value in seconds.items():
                    found.setdefault(f"{kind} {name}", []).append(value)
        shutil.rmtree(folder / "plain" / str(step))
        if step > 1:
            found.setdefault("digest", []).append(timed(lambda: checks(arrays)))
    return found


def peak() -> float:
    """MiB that this program had at most; `getrusage` counts what the process was before it, too."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 2**10


def resident() -> float:
    """MiB that it has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def memory_of_a_restore(mib: int, leaf: int, folder: Path) -> None:
    """Print, as JSON, how far memory went above what there was, in units of the state."""
    abstract = jax.eval_shape(lambda: state_of(mib, leaf))
    one = Ours(folder)
    before = resident()
    one.restore(0, abstract)
    print(json.dumps({"peak": (peak() - before) / mib}))


def memory_of_saves(mib: int, leaf: int, folder: Path) -> None:
    """Print, as JSON, what the process held after the second save, and after the last."""
    state, one = jax.block_until_ready(state_of(mib, leaf)), Ours(folder)
    held = []
    for step in range(SAVES):
        one.save(step, state)
        one.wait()
        held.append(resident())
    print(json.dumps({"second": held[1], "last": held[-1]}))


def alone(what: str, mib: int, leaf: int, folder: Path) -> dict[str, float]:
    """Return what a process of its own prints."""
    size = ["--mib", str(mib), "--leaf", str(leaf)]
    command = [sys.executable, __file__, "--alone", what, *size, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    numbers: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return numbers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--leaf", type=int, default=16, help="MiB of an array; --mib: one array")
    parser.add_argument("--digest", action="store_true", help="only ours, with it and without")
    parser.add_argument("--damage", type=int, metavar="OFFSETS", help="only what damage does")
    parser.add_argument("--alone", choices=["restore", "saves"], help=argparse.SUPPRESS)
    parser.add_argument("folder", nargs="?", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone:
        work = {"restore": memory_of_a_restore, "saves": memory_of_saves}[arguments.alone]
        work(arguments.mib, arguments.leaf, arguments.folder)
        return
    folder = Path(tempfile.mkdtemp(prefix="checkpoint-"))
    try:
        if arguments.damage:
            damaged(arguments.damage, folder)
        elif arguments.digest:
            state = jax.block_until_ready(state_of(arguments.mib, arguments.leaf))
            digested(state, arguments.rounds, folder)
        else:
            report(arguments.mib, arguments.leaf, arguments.rounds, folder)
    finally:
        shutil.rmtree(folder)


def report(mib: int, leaf: int, rounds: int, folder: Path) -> None:
    found = measure(jax.block_until_ready(state_of(mib, leaf)), rounds, folder)
    table = Table("", "ours", "Orbax", "ratio")
    for kind, said in {
        "loop": "until the loop goes on",
        "disk": "until it is on the disk",
        "restore": "restore; ours verifies",
    }.items():
        add_row(table, said, found[f"{kind} ours"], found[f"{kind} Orbax"])
    digest, disk = (statistics.median(found[name]) for name in ("digest", "disk ours"))
    table.add_row("the digest alone", f"{digest:.3f} s", "", f"{digest / disk:.2f} of ours")
    restored = alone("restore", mib, leaf, folder / "ours")["peak"]
    table.add_row("memory of a restore, in states", f"{restored:.2f}", "", "")
    saves = alone("saves", 96, min(leaf, 16), folder / "saves")
    grown = saves["last"] / saves["second"]
    table.add_row(f"memory after save {SAVES} by save 2", f"{grown:.3f}", "", "")
    Console(width=100).print(f"{mib} MiB, {rounds} rounds", table)


if __name__ == "__main__":
    main()
