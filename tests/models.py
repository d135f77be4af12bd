"""Small plugins to test the core with: observers, and others that are not as they should be."""

from __future__ import annotations

from typing import Any

import attrs
import jax
import jax.numpy as jnp
import numpy as np
import optax

from trainer_core import Data, hookimpl, plugin, setting
from trainer_core.testing.small import COEFFICIENTS, Examples, Perceptron, rows

# Recipes name them models:Perceptron, models:Examples.
__all__ = ["COEFFICIENTS", "Examples", "Perceptron", "rows"]


@plugin
class Recorder:
    """Notes every call of every hook, with what it was given, for tests to look at."""

    calls: list[tuple[str, dict[str, Any]]] = attrs.field(init=False, factory=list)

    @hookimpl(wrapper=True)
    def build_data(self, run: Any) -> Any:
        source = yield from self._around("build_data", run=run)
        batch = source.batch

        def noted(step: int) -> Any:
            self._note("batch", step=step)
            return batch(step)

        source.batch = noted
        return source

    @hookimpl(wrapper=True)
    def build_state(self, run: Any, batch: Any) -> Any:
        return (yield from self._around("build_state", run=run, batch=batch))

    @hookimpl(wrapper=True)
    def build_schedule(self, run: Any) -> Any:
        return (yield from self._around("build_schedule", run=run))

    @hookimpl(wrapper=True)
    def build_optimizer(self, run: Any, model: Any, learning_rate: Any) -> Any:
        return (
            yield from self._around(
                "build_optimizer", run=run, model=model, learning_rate=learning_rate
            )
        )

    @hookimpl(wrapper=True)
    def describe_optimizer(self, run: Any, model: Any) -> Any:
        return (yield from self._around("describe_optimizer", run=run, model=model))

    @hookimpl(wrapper=True)
    def accumulate(self, run: Any, model: Any, loss: Any) -> Any:
        return (yield from self._around("accumulate", run=run, model=model, loss=loss))

    @hookimpl(wrapper=True)
    def step(self, run: Any, grad_fn: Any, optimizer: Any, learning_rate: Any) -> Any:
        return (
            yield from self._around(
                "step", run=run, grad_fn=grad_fn, optimizer=optimizer, learning_rate=learning_rate
            )
        )

    @hookimpl(wrapper=True)
    def shard(self, run: Any, model: Any, abstract_state: Any, derive: Any) -> Any:
        return (
            yield from self._around(
                "shard", run=run, model=model, abstract_state=abstract_state, derive=derive
            )
        )

    @hookimpl(wrapper=True)
    def restore(self, run: Any, like: Any, data: Any) -> Any:
        return (yield from self._around("restore", run=run, like=like, data=data))

    @hookimpl
    def start(self, run: Any, program: Any, step: int) -> None:
        self._note("start", run=run, program=program, step=step)

    @hookimpl
    def report(self, run: Any, step: int, metrics: Any) -> None:
        self._note("report", run=run, step=step, metrics=dict(metrics))

    @hookimpl
    def evaluate(self, run: Any, step: int, state: Any) -> None:
        self._note("evaluate", run=run, step=step, state=state)

    @hookimpl
    def save(self, run: Any, step: int, state: Any, data: Any) -> None:
        self._note("save", run=run, step=step, state=state, data=data)

    @hookimpl
    def phase(self, run: Any, name: str, program: Any) -> None:
        self._note("phase", run=run, name=name, program=program)

    @hookimpl
    def close(self, run: Any, error: Any) -> None:
        self._note("close", run=run, error=error)

    def names(self) -> list[str]:
        return [name for name, _ in self.calls]

    def given(self, hook: str) -> list[dict[str, Any]]:
        return [arguments for name, arguments in self.calls if name == hook]

    def _note(self, hook: str, **arguments: Any) -> dict[str, Any]:
        self.calls.append((hook, arguments))
        return arguments

    def _around(self, hook: str, **arguments: Any) -> Any:
        given = self._note(hook, **arguments)
        given["answer"] = yield
        return given["answer"]


@plugin
class Failing(Recorder):
    """Raises in one hook, or in one of its calls."""

    hook: str = setting()
    at: int | None = setting(None, "the step of the call; any where not given")

    def _note(self, hook: str, **arguments: Any) -> dict[str, Any]:
        given = super()._note(hook, **arguments)
        if hook == self.hook and self.at in (None, arguments.get("step")):
            raise RuntimeError(f"no fuel in {hook}")
        return given


@plugin
class StopAfter:
    """Asks the run to stop when a step is reported."""

    step: int = setting()

    @hookimpl
    def report(self, run: Any, step: int) -> None:
        if step == self.step:
            run.stop(f"stopped by the test at step {step}")


@plugin
class Forgetful:
    """Is asked to save, and does not."""

    every: int = setting(1)

    @hookimpl
    def restore(self) -> None:
        return None

    @hookimpl
    def save(self) -> None:
        return None


def by_shape_alone(learning_rate: Any, refuse_meshes: bool = False) -> Any:
    """An optimizer whose `init` hides from JAX that its state belongs to the parameters."""

    def init(params: Any) -> Any:
        if refuse_meshes and not jax.sharding.get_abstract_mesh().empty:
            raise ValueError("no mesh, please")
        return {"momentum": jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), params)}

    def update(grads: Any, state: Any, params: Any = None) -> Any:
        momentum = jax.tree.map(lambda a, b: 0.9 * a + b, state["momentum"], grads)
        rate = learning_rate(0)
        return jax.tree.map(lambda leaf: -rate * leaf, momentum), {"momentum": momentum}

    return optax.GradientTransformation(init, update)


@plugin
class Stream:
    """Rows that can only be read once, in order: which batch comes next is its own affair."""

    batch_size: int = setting(16)

    @hookimpl
    def build_data(self) -> Data:
        return StreamOfRows(self.batch_size)


class StreamOfRows(Data):
    def __init__(self, batch_size: int) -> None:
        self.batch_size, self.at = batch_size, 0
        self.taken: list[int] = []

    def batch(self, step: int) -> dict[str, np.ndarray]:
        self.taken.append(self.at)
        self.at += 1
        return rows(self.batch_size, seed=self.taken[-1])

    def state(self) -> dict[str, Any]:
        return {"at": self.at}

    def load(self, state: dict[str, Any]) -> None:
        self.at = state["at"]
        self.taken.clear()
