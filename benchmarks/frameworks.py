"""What the choice of a framework costs: the same decoder in Linen and in NNX, side by side.

The time of a step and of compiling it; what a call of the step costs the host, beside `jax.jit`
on pure dicts by hand; and how long a process imports. Rivals take turns, so that whatever else
the machine does falls on both; a ratio is the median over the rounds. Run it with nothing beside:

    uv run python benchmarks/frameworks.py
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
from loop import OVERRIDES, by_hand, own_step, race
from rich.console import Console
from rich.table import Table

from trainer_core.assemble import open_run
from trainer_core.config import load_config
from trainer_core.program import Program, build_program

FRAMEWORKS = ("linen", "nnx")
# Many small arrays: next to nothing is computed, and the host has much to hand over.
SMALL = ["model.layers=12", "model.width=16", "model.heads=2", "model.scan=false"]
SMALL += ["data.length=8", "data.batch_size=1"]
Times = dict[str, list[float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=20, help="in a round")
    options = parser.parse_args()
    jax.config.update("jax_enable_compilation_cache", False)

    programs = {name: program_of(name, OVERRIDES) for name in FRAMEWORKS}
    count = f"{programs['nnx'].param_count:,} parameters"
    same = len({lowered(program) for program in programs.values()}) == 1
    Console(width=100).print(
        f"both lower to {'the same program' if same else 'programs of their own'}"
    )
    show(f"a step, {count}", "ms", 1e3, step_times(programs, options.rounds, options.steps))
    show(f"compiling the step, {count}", "processor seconds", 1, compile_times(programs, 3))

    small = {name: program_of(name, SMALL) for name in FRAMEWORKS}
    arrays = len(jax.tree.leaves(small["nnx"].abstract_state))
    title = f"until the call returns, {arrays} arrays"
    show(title, "ms", 1e3, call_times(small, 10 * options.rounds), "jax.jit on pure dicts, by hand")
    show("from a new process to a program", "seconds", 1, start_times(5), "import jax and optax")


def program_of(framework: str, overrides: list[str]) -> Program:
    config = load_config(
        {
            "model": {"use": framework},
            "checkpoint": {"use": "none"},
            "plugins": {"progress": False, "jsonl": False},
        },
        overrides,
    )
    return build_program(*open_run(config))


def lowered(program: Program) -> str:
    """What XLA is given; it does not say which lines of Python it comes from."""
    step = jax.jit(program.step.apply)
    return step.lower(program.abstract_state, program.abstract_batch).as_text()


def step_times(programs: Mapping[str, Program], rounds: int, steps: int) -> Times:
    rivals = {
        name: by_hand(program, program.compile_step(), steps) for name, program in programs.items()
    }
    states = {name: program.initial_state() for name, program in programs.items()}
    return race(rivals, states, rounds, steps)


def compile_times(programs: Mapping[str, Program], rounds: int) -> Times:
    return in_turn({name: compiling(program) for name, program in programs.items()}, rounds)


def compiling(program: Program) -> Callable[[], float]:
    def measure() -> float:
        jax.clear_caches()  # nothing that was traced before is taken again
        begun = time.process_time()
        program.compile_step()
        return time.process_time() - begun

    return measure


def call_times(programs: Mapping[str, Program], rounds: int) -> Times:
    """The time until a call of the step returns; its arrays come later."""
    program = programs["nnx"]
    hand, start = own_step(program)
    rivals = {f"a run, {name}": each.compile_step() for name, each in programs.items()}
    rivals["jax.jit on pure dicts, by hand"] = hand
    states: dict[str, Any] = {
        f"a run, {name}": each.initial_state() for name, each in programs.items()
    }
    states["jax.jit on pure dicts, by hand"] = start(program.initial_state().params)
    batch = program.place(program.data.batch(0))

    def calling(name: str) -> Callable[[], float]:
        def measure() -> float:
            begun = time.perf_counter()
            states[name], _ = rivals[name](states[name], batch)
            returned = time.perf_counter()
            jax.block_until_ready(states[name])
            return returned - begun

        return measure

    return in_turn({name: calling(name) for name in rivals}, rounds)


BUILD = """
import sys
from trainer_core.assemble import open_run
from trainer_core.config import load_config
from trainer_core.program import build_program
config = {"model": {"use": sys.argv[1]}, "checkpoint": {"use": "none"}, "plugins": {"jsonl": False}}
build_program(*open_run(load_config(config)))
other = {"linen": "trainer_nnx", "nnx": "trainer_linen"}[sys.argv[1]]
assert other not in sys.modules, f"a run of {sys.argv[1]} imports {other}"
"""


def start_times(rounds: int) -> Times:
    """And a run that names one framework imports no plugin of the other, or this fails."""

    def process(*arguments: str) -> Callable[[], float]:
        command = [sys.executable, "-c", *arguments]
        return lambda: timed(lambda: subprocess.run(command, check=True))

    rivals = {name: process(BUILD, name) for name in FRAMEWORKS}
    return in_turn(rivals | {"import jax and optax": process("import jax, optax")}, rounds)


def timed(work: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def in_turn(rivals: Mapping[str, Callable[[], float]], rounds: int) -> Times:
    """Return what each rival measures in each round but the first."""
    times: Times = {name: [] for name in rivals}
    names = list(rivals)
    for number in range(rounds + 1):
        names = [*names[1:], names[0]]  # none always runs after the same one
        for name in names:
            seconds = rivals[name]()
            if number:
                times[name].append(seconds)
    return times


def show(title: str, unit: str, scale: float, times: Times, base: str = "nnx") -> None:
    table = Table(title=title, min_width=60)
    table.add_column("what")
    table.add_column(unit, justify="right")
    table.add_column(f"against {base}", justify="right")
    for name, each in times.items():
        ratios = [mine / its for mine, its in zip(each, times[base], strict=True)]
        ratio = f"{statistics.median(ratios):.3f}"
        table.add_row(name, f"{statistics.median(each) * scale:.2f}", ratio)
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
