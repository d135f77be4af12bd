"""What the loop costs: the same step, run by `trainer_core` and by hand.

Rounds alternate, so that whatever else the machine does falls on both; the medians of a round's
time a step are compared. Run it with nothing beside it:

    uv run python benchmarks/loop.py
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import attrs
import jax
import jax.numpy as jnp
import optax
from rich.console import Console
from rich.table import Table

from trainer_core import loop
from trainer_core.assemble import open_run
from trainer_core.config import load_config
from trainer_core.program import Program, build_program

# About a million parameters.
OVERRIDES = ["model.layers=5", "model.width=128", "data.length=64", "data.batch_size=8"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=20, help="in a round")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        config = load_config(
            {
                "run": {"directory": folder, "steps": 1_000_000, "eval_every": 0},
                "checkpoint": {"use": "none"},
                "plugins": {"progress": {"style": "quiet"}},
            },
            OVERRIDES,
        )
        run, hooks = open_run(config)
        program = build_program(run, hooks)
        hooks.start(run=run, program=program, step=0)
        compiled = program.compile_step()

        def trainer(state: Any, first: int) -> Any:
            settings = attrs.evolve(run.settings, steps=first + options.steps, eval_batches=0)
            part = attrs.evolve(run, settings=settings)
            return loop._steps(part, hooks, program, compiled, state, first).state

        own, start = own_step(program)
        rivals = {
            "trainer_core": trainer,
            "the same compiled step, by hand": by_hand(program, compiled, options.steps),
            "a step and a loop by hand": by_hand(program, own, options.steps),
        }
        states = {name: program.initial_state() for name in rivals}
        states["a step and a loop by hand"] = start(program.initial_state().params)
        times = race(rivals, states, options.rounds, options.steps)
        show(program, times)


def by_hand(program: Program, step_fn: Any, steps: int) -> Callable[[Any, int], Any]:
    """The loop that one would write: metrics of every step read, one step late."""

    def loop_by_hand(state: Any, first: int) -> Any:
        waiting = None
        for step in range(first, first + steps):
            batch = jax.device_put(program.data.batch(step))
            state, metrics = step_fn(state, batch)
            if waiting is not None:
                {name: float(value) for name, value in waiting.items()}
            waiting = metrics
        {name: float(value) for name, value in (waiting or {}).items()}
        return state

    return loop_by_hand


def own_step(program: Program) -> tuple[Any, Callable[[Any], Any]]:
    """The step that one would write for this model: no plugin, no hook, no skipping."""
    model, schedule = program.model, program.schedule
    decayed = jax.tree.map(lambda info: info.kind != "norm", model.params)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(schedule, b1=0.9, b2=0.95, weight_decay=0.1, mask=decayed),
    )

    def loss(params: Any, batch: Any, key: Any) -> Any:
        terms, _ = model.terms(params, {}, batch, key, True)
        term = terms["cross_entropy"]
        return term.sum / term.weight

    def step(state: Any, batch: Any) -> Any:
        key = jax.random.fold_in(state["key"], state["step"])
        value, grads = jax.value_and_grad(loss)(state["params"], batch, key)
        updates, opt_state = optimizer.update(grads, state["opt_state"], state["params"])
        metrics = {
            "loss": value,
            "grad_norm": optax.tree.norm(grads),
            "learning_rate": jnp.asarray(schedule(state["step"])),
        }
        params = optax.apply_updates(state["params"], updates)
        after = {"params": params, "opt_state": opt_state, "step": state["step"] + 1}
        return state | after, metrics

    def start(params: Any) -> Any:
        return {
            "params": params,
            "opt_state": optimizer.init(params),
            "step": jnp.zeros((), jnp.int32),
            "key": jax.random.key(0),
        }

    return jax.jit(step, donate_argnums=0), start


def race(
    rivals: dict[str, Any], states: dict[str, Any], rounds: int, steps: int
) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in rivals}
    names = list(rivals)
    for number in range(rounds + 1):
        names = [*names[1:], names[0]]  # none always runs after the same one
        for name in names:
            rival = rivals[name]
            begun = time.perf_counter()
            states[name] = jax.block_until_ready(rival(states[name], number * steps))
            if number:  # the first round compiles
                times[name].append((time.perf_counter() - begun) / steps)
    return times


def show(program: Program, times: dict[str, list[float]]) -> None:
    base = times["trainer_core"]
    table = Table(title=f"{program.param_count:,} parameters, every metric at every step")
    table.add_column("loop")
    table.add_column("ms a step", justify="right")
    table.add_column("trainer_core against it", justify="right")
    for name, each in times.items():
        ratio = statistics.median(ours / theirs for ours, theirs in zip(base, each, strict=True))
        table.add_row(name, f"{statistics.median(each) * 1e3:.2f}", f"{ratio:.3f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
