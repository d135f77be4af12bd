"""What a step costs on a mesh, beside one written by hand for the same decoder.

By hand means as in tests/by_hand.py, with the same shardings. Collectives and their bytes are
counted in the compiled programs; steps run in turns, on eight simulated devices.

    uv run python benchmarks/many_devices.py [--rounds 40]
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from pathlib import Path

# Eight devices on two cores can wait for each other longer than the 40 s after which XLA ends the
# process.
os.environ["XLA_FLAGS"] = " ".join(
    (
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_cpu_collective_call_warn_stuck_timeout_seconds=60",
        "--xla_cpu_collective_call_terminate_timeout_seconds=600",
    )
)
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import jax
from by_hand import ByHand, program_on
from rich.console import Console
from rich.table import Table

from trainer_core.plan.cost import cost_of

MESHES = ["{fsdp=8}", "{fsdp=4,tensor=2}", "{data=2,fsdp=2,tensor=2}", "{data=8}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    rounds = parser.parse_args().rounds
    jax.config.update("jax_enable_compilation_cache", False)
    table = Table(
        "mesh", "step", "ms", "ours beside it", "collectives", "MiB", "Gflop", "compile, s"
    )
    for mesh in MESHES:
        program = program_on(mesh)
        hand = ByHand(program)
        batch = program.place(program.data.batch(0))
        # One program at a time: the threads of simulated devices can wait for each other for ever.
        states = [jax.block_until_ready(program.initial_state())]
        params = jax.block_until_ready(program.initial_state().params)
        states.append(jax.block_until_ready(hand.initial(params)))
        steps, rows = [], []
        lowered = [
            program.trace_step().lower(),
            hand.jitted.lower(states[1], batch),
        ]
        for name, each in zip(("ours", "by hand"), lowered, strict=True):
            began = time.perf_counter()
            steps.append(each.compile())
            cost = cost_of(steps[-1].as_text())
            kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(cost.collectives.items()))
            rows.append((name, kinds, cost, time.perf_counter() - began))
        seconds: list[list[float]] = [[], []]
        losses: list[float] = [0.0, 0.0]
        for turn in range(rounds + 1):
            for each in (0, 1) if turn % 2 else (1, 0):
                began = time.perf_counter()
                states[each], metrics = jax.block_until_ready(steps[each](states[each], batch))
                losses[each] = float(metrics["loss"])
                if turn:
                    seconds[each].append(time.perf_counter() - began)
            # Both train the same model: two programs that differ in a formula would show it, before
            # rounding, over many steps on one batch, leads them apart.
            assert turn > 12 or abs(losses[0] - losses[1]) < 1e-4 * (turn + 1), losses
        ratio = statistics.median(a / b for a, b in zip(*seconds, strict=True))
        for at, (name, kinds, cost, compile_seconds) in enumerate(rows):
            table.add_row(
                mesh if not at else "",
                name,
                f"{statistics.median(seconds[at]) * 1e3:.1f}",
                f"{ratio:.3f}" if at else "",
                kinds,
                f"{cost.bytes / 2**20:.2f}",
                f"{cost.flops / 1e9:.3f}",
                f"{compile_seconds:.1f}",
            )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
