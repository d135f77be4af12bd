"""Kills runs at moments drawn by chance, hundreds of times; each must end as an unbroken one.

Exact means: every line of metrics.jsonl but the clock's numbers, and every array of the last
checkpoint, by its digest. The first difference ends the soak with an error.

    uv run python benchmarks/soak.py [--kills 300] [--seed 0] [--case "nnx, muon"]
"""

from __future__ import annotations

import argparse
import collections
import itertools
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from kills import CASES, Case, Kill, killed, outcome, unbroken
from rich.console import Console
from rich.table import Table


def soak(name: str, case: Case, count: int, seed: int, folder: Path) -> list[Kill]:
    """Kill a case at least `count` times, over as many runs as that takes."""
    chance = random.Random(f"{name} {seed}")
    seconds = unbroken(case, folder / "unbroken")
    expected = outcome(folder / "unbroken")
    kills: list[Kill] = []
    for number in itertools.count():
        if len(kills) >= count:
            break
        run = folder / str(number)
        kills += killed(case, run, chance, seconds)
        if outcome(run) != expected:
            sys.exit(f"{name}: after {len(kills)} kills the run in {run} is another one")
        print(f"{name}: {len(kills)} kills, all exact", file=sys.stderr, flush=True)
    return kills


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=300, help="in all, at least")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", choices=[*CASES], help="only this one")
    arguments = parser.parse_args()
    cases = [arguments.case] if arguments.case else [*CASES]
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    table = Table("run", "kills", "in the phase", "half written", "half deleted", "minutes")
    for name in cases:
        began = time.monotonic()
        kills = soak(
            name, CASES[name], arguments.kills // len(cases), arguments.seed, folder / name
        )
        phases = collections.Counter(each.phase for each in kills).most_common()
        table.add_row(
            name,
            str(len(kills)),
            ", ".join(f"{phase} {count}" for phase, count in phases),
            *(str(sum(what in each.left for each in kills)) for what in ("written", "deleted")),
            f"{(time.monotonic() - began) / 60:.0f}",
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
