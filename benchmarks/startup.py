"""How long until a command answers, and until the first step; with a cold and a warm cache.

uv run python benchmarks/startup.py
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

TRAINER = [sys.executable, "-c", "from trainer_core.cli import main; main()"]


def main() -> None:
    table = Table(title="seconds, medians")
    table.add_column("what")
    table.add_column("seconds", justify="right")
    with tempfile.TemporaryDirectory() as folder:
        for name, arguments in (
            ("trainer --help", ["--help"]),
            ("trainer plugins", ["plugins"]),
            ("a mistake in the config", ["train", "run.stpes=3"]),
        ):
            median = statistics.median(timed(arguments, Path(folder)) for _ in range(7))
            table.add_row(name, f"{median:.2f}")
        cold = [first_step(Path(folder) / f"cold{number}") for number in range(3)]
        warm = [first_step(Path(folder) / "cold0") for number in range(3)]
    table.add_row("to the first step, cold compile cache", f"{statistics.median(cold):.1f}")
    table.add_row("to the first step, warm compile cache", f"{statistics.median(warm):.1f}")
    Console(width=100).print(table)


def timed(arguments: list[str], folder: Path) -> float:
    begun = time.perf_counter()
    subprocess.run([*TRAINER, *arguments], cwd=folder, capture_output=True, check=False)
    return time.perf_counter() - begun


def first_step(cache: Path) -> float:
    """Seconds from the command to the first line of metrics of a new run of the tiny preset."""
    environment = os.environ | {"XDG_CACHE_HOME": str(cache)}
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        command = [*TRAINER, "train", "--json", "run.steps=3", "run.eval_batches=0"]
        with subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if json.loads(line).get("step") == 1:
                    elapsed = time.perf_counter() - begun
                    process.stdout.read()
                    return elapsed
    raise SystemExit("the run made no step")


if __name__ == "__main__":
    main()
