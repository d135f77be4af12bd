"""What a call of the compiled step costs the host, with 1,000 parameters that are not stacked.

The step that a run compiles ahead of time is called beside the same function under `jax.jit` on
plain dicts; the time until the call returns, tiny arrays, calls interleaved.

    uv run python benchmarks/dispatch.py
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.table import Table

from trainer_core import Axis, Data, Model, ParamInfo, Term, TrainState, hookimpl, plugin
from trainer_core.assemble import open_run
from trainer_core.config import load_config
from trainer_core.program import build_program

COUNT = 1000


@plugin
class Many:
    """A thousand scales, each of eight numbers."""

    @hookimpl
    def build_state(self) -> Model:
        names = [f"scale{index}" for index in range(COUNT)]
        axes, dtype = (Axis(None),), jnp.dtype("float32")

        def terms(params: Any, buffers: Any, batch: Any, key: Any, train: bool) -> Any:
            total = sum(jnp.sum(params[name] * batch["x"]) for name in names)
            return {"sum": Term(total, jnp.ones(()))}, buffers

        return Model(
            init=lambda key: ({name: jnp.ones(8) for name in names}, {}),
            terms=terms,
            params={name: ParamInfo(name, (8,), dtype, axes) for name in names},
        )


@plugin
class Ones:
    batch_size: int = 1

    @hookimpl
    def build_data(self) -> Data:
        class Source(Data):
            def batch(self, step: int) -> dict[str, np.ndarray]:
                return {"x": np.ones((1, 8), np.float32)}

        return Source()


def main() -> None:
    config = load_config(
        {
            "model": {"use": "dispatch:Many"},
            "data": {"use": "dispatch:Ones"},
            "optimizer": {"use": "sgd"},
            "checkpoint": {"use": "none"},
            "plugins": {"progress": False, "jsonl": False},
        }
    )
    program = build_program(*open_run(config))
    step = program.compile_step()
    state = program.initial_state()
    batch = program.place(program.data.batch(0))

    optimizer = optax.sgd(program.schedule, momentum=0.9)

    def plain(state: Any, batch: Any) -> Any:
        def loss(params: Any) -> Any:
            return program.model.terms(params, {}, batch, state["key"], True)[0]["sum"].sum

        value, grads = jax.value_and_grad(loss)(state["params"])
        updates, opt_state = optimizer.update(grads, state["opt_state"])
        params = optax.apply_updates(state["params"], updates)
        return state | {"params": params, "opt_state": opt_state}, {"loss": value}

    by_hand = jax.jit(plain, donate_argnums=0)
    params = program.initial_state().params
    hand_state = {"params": params, "opt_state": optimizer.init(params), "key": jax.random.key(0)}

    times: dict[str, list[float]] = {"the step of a run": [], "jax.jit on plain dicts": []}
    for number in range(205):
        begun = time.perf_counter()
        state, _ = step(state, batch)
        middle = time.perf_counter()
        jax.block_until_ready(state)
        again = time.perf_counter()
        hand_state, _ = by_hand(hand_state, batch)
        end = time.perf_counter()
        jax.block_until_ready(hand_state)
        if number >= 5:
            times["the step of a run"].append(middle - begun)
            times["jax.jit on plain dicts"].append(end - again)
    assert isinstance(state, TrainState)
    show(times)


def show(times: dict[str, list[float]]) -> None:
    base = statistics.median(times["jax.jit on plain dicts"])
    table = Table(title=f"time until the call returns, {COUNT} parameters, not stacked")
    table.add_column("step")
    table.add_column("ms", justify="right")
    table.add_column("ratio", justify="right")
    for name, each in times.items():
        median = statistics.median(each)
        table.add_row(name, f"{median * 1e3:.2f}", f"{median / base:.3f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).parent))
    main()
