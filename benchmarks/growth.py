"""How the cost of planning a run grows: with layers, with devices, with parameters.

Each row is a process of its own, which builds and traces a decoder of shapes alone, and, but for
the rows of parameters, compiles its step. Times are seconds of CPU, of all threads together, so
that they say the same on a machine that does other things too:

    python benchmarks/growth.py                     # devices are simulated CPUs
    python benchmarks/growth.py --tpu               # they are v5e; needs trainer-core[plan-tpu]
    python benchmarks/growth.py --plot growth.svg   # draws it too; needs matplotlib
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

LAYERS = (4, 8, 16, 32, 64)
DEVICES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
V5E = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
TIMES = ("build", "trace", "compile")
SIZES = {
    "1 M": ["model.width=160", "model.heads=4"],
    "11 M": ["model.width=512", "model.heads=8", "model.layers=4"],
    "124 M": ["model.preset=gpt2-small"],
    "1.6 B": ["model.preset=gpt2-xl"],
    "8.0 B": ["model.preset=llama3-8b"],
    "70.6 B": ["model.preset=llama3-70b"],
}


def settings_of(kind: str, value: str) -> tuple[int, list[str]]:
    """Return the devices and the settings of a row."""
    small = ["model.width=256", "model.heads=8", "data.length=128", "data.batch_size=256"]
    if kind == "layers":
        return 8, [*small, f"model.layers={value}"]
    if kind == "devices":
        return int(value), [*small, "model.layers=4"]
    return 8, [*SIZES[value], "data.length=128", "data.batch_size=256"]


def measure(kind: str, value: str, tpu: bool) -> dict[str, Any]:
    """Plan one row in this process, and return what it took, without imports."""
    from trainer_core.plan.devices import devices_of, prepare
    from trainer_core.plan.topology import parse_topology

    count, settings = settings_of(kind, value)
    topology = parse_topology(f"v5e:{V5E[count]}" if tpu else f"cpu:{count}")
    prepare(topology)
    import jax

    jax.config.update("jax_enable_compilation_cache", False)
    from trainer_core.assemble import open_run
    from trainer_core.config import load_config
    from trainer_core.plan.flops import products_of
    from trainer_core.plan.memory import memory_of
    from trainer_core.program import build_program

    devices = devices_of(topology)
    mesh = "shard.mesh={data=1, fsdp=-1, tensor=1}"
    quiet = ["plugins.progress=false", "checkpoint.use=none"]
    run, hooks = open_run(load_config(None, [*settings, mesh, *quiet]), devices=devices)
    build_program(run, hooks)  # loads what the plugins import
    times = [time.process_time()]
    program = build_program(run, hooks)
    memory_of(program)
    times.append(time.process_time())
    if kind != "parameters":
        traced = program.trace_step()
        products_of(traced.jaxpr)
        times.append(time.process_time())
        lowered_for = ("tpu",) if tpu else None
        traced.lower(lowering_platforms=lowered_for).compile()
        times.append(time.process_time())
    spans = (after - before for before, after in itertools.pairwise(times))
    found: dict[str, Any] = dict(zip(TIMES, spans, strict=False))
    found["parameters"] = program.param_count
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found | {"memory": peak / (2**20 if sys.platform == "linux" else 2**30)}


def measured(kind: str, value: str, tpu: bool) -> dict[str, Any]:
    """Measure a row in a process of its own."""
    command = [sys.executable, str(Path(__file__)), "--row", kind, value, *["--tpu"] * tpu]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tpu", action="store_true")
    parser.add_argument("--plot", metavar="FILE.svg")
    parser.add_argument("--row", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.row:
        print(json.dumps(measure(*arguments.row, arguments.tpu)))
        return
    devices = [str(count) for count in DEVICES if not arguments.tpu or count in V5E]
    values = {"layers": map(str, LAYERS), "devices": devices, "parameters": SIZES}
    rows: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    table = Table("", "parameters", "build, s", "trace, s", "compile, s", "host memory, GiB")
    for kind, each in values.items():
        for value in each:
            found = measured(kind, value, arguments.tpu)
            rows.setdefault(kind, []).append((value, found))
            times = [
                f"{found[name]:.2f}" if name in found else ""
                for name in ("build", "trace", "compile")
            ]
            size = f"{found['parameters']:,}"
            table.add_row(f"{kind}: {value}", size, *times, f"{found['memory']:.2f}")
    Console(width=100).print(table)
    if arguments.plot:
        draw(rows, arguments.plot)


def draw(rows: dict[str, list[tuple[str, dict[str, Any]]]], file: str) -> None:
    """Draw seconds against each of the three."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.4), layout="constrained")
    axes = figure.subplots(1, len(rows), sharey=True)
    for axis, (kind, found) in zip(axes, rows.items(), strict=True):
        across = [
            each["parameters"] if kind == "parameters" else int(value) for value, each in found
        ]
        for name in TIMES:
            heights = [each[name] for _, each in found if name in each]
            if heights:
                axis.plot(across, heights, marker="o", label=name)
        axis.set(xscale="log", yscale="log", xlabel=kind)
        axis.set_xticks(across, [value for value, _ in found])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("CPU seconds")
    axes[0].legend()
    figure.savefig(file)


if __name__ == "__main__":
    main()
