"""What plugins cost: installed ones at the start of a command, observers at each step.

uv run python benchmarks/plugins.py
"""

from __future__ import annotations

import functools
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import attrs
from rich.console import Console
from rich.table import Table

from trainer_core import fit, hookimpl, installed, plugin
from trainer_core.config import Chosen, load_config
from trainer_core.hooks import register
from trainer_core.registry import PLUGINS, SLOTS, Candidate

TRAINER = [sys.executable, "-c", "from trainer_core.cli import main; main()"]
INSTALLED = (0, 10, 100)
OBSERVERS = (0, 10, 50)
COMMANDS = {
    "trainer --help": ["--help"],
    "trainer plugins": ["plugins"],
    "a mistake in the config": ["train", "run.stpes=3"],
}
ROUNDS = 15
CALLS = 2000
STEPS, RUNS = 400, 9


def main() -> None:
    console = Console(width=100)
    console.print(starts())
    console.print(readings())
    console.print(observers())
    console.print(steps())


def starts() -> Table:
    """Milliseconds of the processor for a command, in turn with each number of packages."""
    table = Table(title=f"ms of the processor for a command, medians of {ROUNDS}")
    table.add_column("installed packages")
    for name in COMMANDS:
        table.add_column(name, justify="right")
        table.add_column("more", justify="right")
    taken: dict[tuple[str, int], list[float]] = {}
    with tempfile.TemporaryDirectory() as root:
        folders = {count: packages(Path(root) / str(count), count) for count in INSTALLED}
        for _ in range(ROUNDS):
            for name, arguments in COMMANDS.items():
                for count, folder in folders.items():
                    milliseconds = 1000 * command(arguments, folder)
                    taken.setdefault((name, count), []).append(milliseconds)
    for count in INSTALLED:
        row = []
        for name in COMMANDS:
            pairs = zip(taken[name, count], taken[name, 0], strict=True)
            row.append(f"{statistics.median(taken[name, count]):.0f}")
            row.append(f"{statistics.median(some - none for some, none in pairs):+.1f}")
        table.add_row(str(count), *row)
    return table


def command(arguments: list[str], folder: Path) -> float:
    """Seconds of the processor: by the clock it depends on what else the machine does."""
    environment = os.environ | {"PYTHONPATH": str(folder)}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [*TRAINER, *arguments], cwd=folder, env=environment, capture_output=True, check=False
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def packages(folder: Path, count: int) -> Path:
    """Write the metadata of packages as installers do, each with one plugin and a description."""
    groups = [slot.group for slot in (*SLOTS.values(), PLUGINS)]
    folder.mkdir()
    for index in range(count):
        about = folder / f"trainer_many_{index}-1.0.dist-info"
        about.mkdir()
        head = f"Metadata-Version: 2.1\nName: trainer-many-{index}\nVersion: 1.0\n"
        (about / "METADATA").write_text(head + "Requires-Dist: trainer-core\n\n" + "text\n" * 2000)
        (about / "entry_points.txt").write_text(
            f"[{groups[index % len(groups)]}]\nmany{index} = trainer_many_{index}:Plugin\n"
        )
        (about / "RECORD").write_text(f"trainer_many_{index}.py,,\n")
    return folder


def readings() -> Table:
    """Milliseconds to read what is registered for all slots, with 100 packages more than here."""
    groups = [slot.group for slot in (*SLOTS.values(), PLUGINS)]
    table = Table(title="ms of the processor to find what 100 packages register for all slots")
    table.add_column("reader")
    table.add_column("ms", justify="right")

    def ours() -> None:
        installed._read.cache_clear()
        for group in groups:
            installed.registered(group)

    def pythons() -> None:
        for group in groups:
            for entry in entry_points(group=group):
                assert entry.dist is not None
                assert entry.dist.version

    with tempfile.TemporaryDirectory() as root, on_path(packages(Path(root) / "100", 100)):
        for name, read in (
            ("trainer_core.installed", ours),
            ("importlib.metadata.entry_points", pythons),
        ):
            rounds = []
            for _ in range(7):
                begun = time.process_time()
                read()
                rounds.append(time.process_time() - begun)
            table.add_row(name, f"{1000 * min(rounds):.1f}")
    return table


@contextmanager
def on_path(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


@plugin
class Observer:
    """Looks, and does nothing."""

    @hookimpl
    def report(self, run: Any, step: int, metrics: Any) -> None: ...

    @hookimpl
    def evaluate(self, run: Any, step: int, state: Any) -> None: ...

    @hookimpl
    def save(self, run: Any, step: int, state: Any, data: Any) -> None: ...


@plugin
class Clock:
    """Notes when each step is reported."""

    seen: ClassVar[list[float]] = []

    @hookimpl
    def start(self) -> None:
        self.seen.clear()

    @hookimpl
    def report(self) -> None:
        self.seen.append(time.perf_counter())


def observers() -> Table:
    """Microseconds of dispatch: hooks whose plugins do nothing, and what of a step that is."""
    table = Table(title="us of a hook call whose observers do nothing, and of a step with a report")
    for name in ("observers", "report", "evaluate", "save", "of a step of 1 ms", "of 100 ms"):
        table.add_column(name, justify="right")
    run: Any = SimpleNamespace(is_main=True)
    given: dict[str, Any] = {"run": run, "step": 1}
    wanted = {"report": ("metrics",), "evaluate": ("state",), "save": ("state", "data")}
    for count in OBSERVERS:
        hooks = with_observers(count)
        times = [
            microseconds(functools.partial(getattr(hooks, name), **given, **dict.fromkeys(more)))
            for name, more in wanted.items()
        ]
        shares = [f"{100 * times[0] / length:.2f} %" for length in (1e3, 1e5)]
        table.add_row(str(count), *(f"{each:.1f}" for each in times), *shares)
    return table


def steps() -> Table:
    """Milliseconds a step of whole runs of a small model, in turn with each number of observers."""
    table = Table(
        title=f"ms a step of a perceptron of {STEPS} steps, medians of {RUNS} runs in turn"
    )
    table.add_column("observers")
    table.add_column("ms", justify="right")
    table.add_column("against none", justify="right")
    taken: dict[int, list[float]] = {count: [] for count in OBSERVERS}
    for _ in range(RUNS):
        for count, found in taken.items():
            found.append(milliseconds_a_step(count))
    for count, found in taken.items():
        ratios = [some / none for some, none in zip(found, taken[0], strict=True)]
        ratio = f"{statistics.median(ratios):.3f}"
        table.add_row(str(count), f"{statistics.median(found):.3f}", ratio)
    return table


def milliseconds_a_step(count: int) -> float:
    from trainer_core.testing.suite import SMALL

    observing = {f"o{index}": {"use": "__main__:Observer"} for index in range(count)}
    with tempfile.TemporaryDirectory() as folder:
        settings = {**SMALL["run"], "directory": f"{folder}/run", "steps": STEPS, "eval_every": 0}
        clock = {"clock": {"use": "__main__:Clock"}}
        plugins = {"progress": False, "jsonl": True, **observing, **clock}
        fit({**SMALL, "run": settings, "plugins": plugins})
    # The first steps still warm up.
    return 1000 * statistics.median(
        after - before for before, after in zip(Clock.seen[20:], Clock.seen[21:], strict=False)
    )


def with_observers(count: int) -> Any:
    """The hooks of a run of observers alone."""
    config = load_config()
    chosen = {}
    for index in range(count):
        table = f"plugins.o{index}"
        candidate = Candidate(PLUGINS, f"o{index}", "benchmark:Observer")
        chosen[table] = Chosen(table, PLUGINS, candidate, Observer())
    hooks = register(attrs.evolve(config, chosen=chosen))
    # The core's own evaluation does work, which is not dispatch.
    manager = hooks._manager  # type: ignore[attr-defined]
    manager.unregister(name="core.evaluate")
    return hooks


def microseconds(call: Callable[[], Any]) -> float:
    rounds = []
    for _ in range(9):
        begun = time.perf_counter()
        for _ in range(CALLS):
            call()
        rounds.append((time.perf_counter() - begun) / CALLS * 1e6)
    return min(rounds)


if __name__ == "__main__":
    main()
