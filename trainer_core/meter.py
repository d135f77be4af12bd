"""Read a step's numbers from the device, and add what the host's clock knows."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from trainer_core.errors import RunError

if TYPE_CHECKING:
    from trainer_core.program import Program
    from trainer_core.types import Metrics

_READS = 8  # over which the rate is taken
_FIRST = ("loss", "grad_norm", "learning_rate")


def python_numbers(metrics: Metrics) -> Metrics:
    """Return metrics as Python numbers, waiting for those that are on a device.

    Raises:
        RunError: one of them is no scalar.
    """
    read = {name: np.asarray(value) for name, value in jax.device_get(dict(metrics)).items()}
    for name, value in read.items():
        if value.shape:
            raise RunError(f"the metric {name!r} has shape {value.shape}; expected a scalar")
        if not jax.numpy.issubdtype(value.dtype, jax.numpy.number) and value.dtype != bool:
            raise RunError(f"the metric {name!r} is {value.item()!r}; expected a number")
    return {name: value.item() for name, value in read.items()}


def new_numbers(metrics: Metrics, answer: Metrics) -> Metrics:
    """Return the metrics of an evaluation as `python_numbers`, to add to those of its step.

    Raises:
        RunError: a name that is there already, or what `python_numbers` refuses.
    """
    if twice := sorted(metrics.keys() & answer.keys()):
        raise RunError(
            f"an answer to the hook evaluate has the metric {twice[0]!r}, and there is one of that "
            f"name already; call it something else"
        )
    return python_numbers(answer)


class Meter:
    """Adds `tokens` (cumulative, all processes), `tokens_per_second` and `seconds` to metrics.

    Pauses (evaluation, saving) count in `seconds`, and not in `tokens_per_second`, which is over
    the last few reads: two may come at once, where an evaluation makes the loop catch up.
    """

    def __init__(self, program: Program, first: int) -> None:
        self.tokens = program.tokens_per_step
        self.began = time.monotonic()
        self.last: Metrics = {}
        self._marks = deque([(first, self.began)], maxlen=_READS + 1)
        self._paused = 0.0

    def read(self, step: int, numbers: Any) -> Metrics:
        """Wait for a step's metrics, and return them as Python numbers."""
        read = python_numbers(numbers)
        # A tree comes back sorted; a person reads the loss first.
        ordered = [*(name for name in _FIRST if name in read), *read]
        metrics: Metrics = {name: read[name] for name in ordered}
        now = time.monotonic()
        running = now - self._paused
        before, then = self._marks[0]
        self._marks.append((step, running))
        if self.tokens is not None:
            metrics["tokens"] = step * self.tokens
            metrics["tokens_per_second"] = (step - before) * self.tokens / max(running - then, 1e-9)
        metrics["seconds"] = now - self.began
        self.last = metrics
        return metrics

    @contextmanager
    def paused(self) -> Iterator[None]:
        begun = time.monotonic()
        yield
        self._paused += time.monotonic() - begun
