"""What a step costs on a mesh, beside one written by hand for the same decoder.

By hand means as in tests/by_hand.py, with the same shardings. Collectives, what is read and
written, and temporaries are counted in the compiled programs. Steps run on eight simulated
devices, in an order drawn anew for each round, in several processes. The step by hand is there
twice, so that the table shows how far two equal programs are apart here.

    uv run python benchmarks/many_devices.py [--rounds 40] [--processes 5]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

MESHES = ["{fsdp=8}", "{fsdp=4,tensor=2}", "{data=2,fsdp=2,tensor=2}", "{data=8}"]
STEPS = ["ours", "by hand", "by hand, again"]
# Eight devices on two cores can wait for each other longer than the 40 s after which XLA ends the
# process. And glibc gives memory back in between: a program whose temporaries are a few KiB larger
# than those of the one before pays 5% of a step for pages that it has already where it runs alone.
ENVIRONMENT = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
    "XLA_FLAGS": "--xla_force_host_platform_device_count=8"
    " --xla_cpu_collective_call_warn_stuck_timeout_seconds=60"
    " --xla_cpu_collective_call_terminate_timeout_seconds=600",
}


def measure(mesh: str, rounds: int, seed: int) -> dict[str, Any]:
    """Return what each step of `STEPS` costs, and how long it took beside the one by hand."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    import jax
    from by_hand import ByHand, program_on

    from trainer_core.plan.cost import cost_of

    jax.config.update("jax_enable_compilation_cache", False)
    program = program_on(mesh)
    hand = ByHand(program)
    batch = program.place(program.data.batch(0))
    # One program at a time: the threads of simulated devices can wait for each other for ever.
    states = [jax.block_until_ready(program.initial_state())]
    for _ in STEPS[1:]:
        params = jax.block_until_ready(program.initial_state().params)
        states.append(jax.block_until_ready(hand.initial(params)))
    lowered = [program.trace_step().lower(), hand.jitted.lower(states[1], batch)]
    steps, found = [], []
    for each in lowered:
        began = time.perf_counter()
        step = each.compile()
        compiled = time.perf_counter() - began
        cost = cost_of(step.as_text())
        kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(cost.collectives.items()))
        steps.append(step)
        found.append(
            {
                "collectives": kinds,
                "moved": cost.bytes / 2**20,
                "products": cost.flops / 1e9,
                "accessed": step.cost_analysis()["bytes accessed"] / 2**20,
                "temporary": step.memory_analysis().temp_size_in_bytes / 2**20,
                "compile": compiled,
            }
        )
    steps.append(steps[1])
    seconds: list[list[float]] = [[] for _ in STEPS]
    losses = [0.0 for _ in STEPS]
    draw = random.Random(seed)
    for turn in range(rounds + 1):
        for each in draw.sample(range(len(STEPS)), len(STEPS)):
            began = time.perf_counter()
            states[each], metrics = jax.block_until_ready(steps[each](states[each], batch))
            losses[each] = float(metrics["loss"])
            if turn:
                seconds[each].append(time.perf_counter() - began)
        # Both train the same model: two programs that differ in a formula would show it, before
        # rounding, over many steps on one batch, leads them apart.
        assert turn > 12 or abs(losses[0] - losses[1]) < 1e-4 * (turn + 1), losses
        assert losses[1] == losses[2], losses
    for name, times in zip(STEPS, seconds, strict=True):
        cost = found[min(STEPS.index(name), 1)]
        ratio = statistics.median(a / b for a, b in zip(times, seconds[1], strict=True))
        found.append(cost | {"ms": statistics.median(times) * 1e3, "beside": ratio})
    return dict(zip(STEPS, found[2:], strict=True))


def in_a_process(mesh: str, rounds: int, seed: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--measure", mesh, str(rounds), str(seed)]
    done = subprocess.run(
        command, env=os.environ | ENVIRONMENT, capture_output=True, text=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--processes", type=int, default=5)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        mesh, rounds, seed = arguments.measure
        print(json.dumps(measure(mesh, int(rounds), int(seed))))
        return

    from rich.console import Console
    from rich.table import Table

    times = "ms", "beside by hand", "in each process", "compile, s"
    sizes = "MiB read, written", "temporary", "exchanged", "Gflop"
    table = Table("mesh", "step", *times, *sizes, "collectives")
    for mesh in MESHES:
        found = [in_a_process(mesh, arguments.rounds, n) for n in range(arguments.processes)]
        for name in STEPS:
            rows = [each[name] for each in found]
            beside = sorted(row["beside"] for row in rows)
            kinds = rows[0].pop("collectives")
            middle = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
            table.add_row(
                mesh,
                name,
                f"{middle['ms']:.1f}",
                f"{middle['beside']:.3f}",
                f"{beside[0]:.3f} to {beside[-1]:.3f}",
                f"{middle['compile']:.1f}",
                f"{middle['accessed']:.2f}",
                f"{middle['temporary']:.2f}",
                f"{middle['moved']:.2f}",
                f"{middle['products']:.3f}",
                kinds,
            )
    Console(width=200).print(table)


if __name__ == "__main__":
    main()
