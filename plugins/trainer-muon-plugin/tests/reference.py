"""Muon as published, in NumPy float64 and one matrix at a time: nothing of the plugin's code."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import attrs
import numpy as np

STANDARD = [(3.4445, -4.7750, 2.0315)] * 5
# Each preset's steps and safety factor, typed again from where it was published, so that a wrong
# digit of the plugin's own is seen.
PRESETS: dict[str, tuple[Sequence[Any], float]] = {
    "standard": (STANDARD, 1.0),
    # The preset "dion" of optax.contrib.muon, and Microsoft's dion.
    "quintic": (
        [
            (4.0848, -6.8946, 2.9270),
            (3.9505, -6.3029, 2.6377),
            (3.7418, -5.5913, 2.3037),
            (2.8769, -3.1427, 1.2046),
            (2.8366, -3.0525, 1.2012),
        ],
        1.0,
    ),
    # nanochat and modded-nanogpt, which divide X by 1 + 2e-2 besides.
    "polar_express": (
        [
            (8.156554524902461, -22.48329292557795, 15.878769915207462),
            (4.042929935166739, -2.808917465908714, 0.5000178451051316),
            (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
            (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
            (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
        ],
        1.02,
    ),
    "deepseek_v4": ([(3.4445, -4.7750, 2.0315)] * 8 + [(2.0, -1.5, 0.5)] * 2, 1.0),
}


def newton_schulz(
    x: np.ndarray, steps: Sequence[Any] = STANDARD, safety: float = 1.0
) -> np.ndarray:
    """Return what github.com/KellerJordan/Muon calls zeropower_via_newtonschulz5, in float64."""
    x = x.astype(np.float64)
    turned = x.shape[0] > x.shape[1]
    x = x.T if turned else x
    norm = np.linalg.norm(x)
    x = x / (norm * safety) if norm else x
    for a, b, c in steps:
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if turned else x


@attrs.define
class KellerJordan:
    """One matrix [in, out], as his Muon updates it (his own is [out, in])."""

    learning_rate: float
    momentum: float = 0.95
    nesterov: bool = True
    weight_decay: float = 0.0
    cautious: bool = False
    scale: str = "keller_jordan"
    normuon_beta: float | None = None
    steps: Sequence[Any] = tuple(STANDARD)
    safety: float = 1.0
    buffer: Any = None
    neurons: Any = None

    def step(self, param: np.ndarray, grad: np.ndarray) -> np.ndarray:
        param, grad = param.astype(np.float64), grad.astype(np.float64)
        self.buffer = np.zeros_like(grad) if self.buffer is None else self.buffer
        self.buffer = self.buffer + (1 - self.momentum) * (grad - self.buffer)  # lerp_
        mixed = grad + self.momentum * (self.buffer - grad) if self.nesterov else self.buffer
        update = newton_schulz(mixed, self.steps, self.safety)
        if self.normuon_beta is not None:
            update = self._normed(update)
        size_in, size_out = param.shape
        update = (
            update
            * {
                "keller_jordan": math.sqrt(max(1, size_out / size_in)),
                "moonlight": 0.2 * math.sqrt(max(size_in, size_out)),
                "spectral": math.sqrt(size_out / size_in),
            }[self.scale]
        )
        decayed = param * (update * param >= 0) if self.cautious else param
        return param - self.learning_rate * (update + self.weight_decay * decayed)

    def _normed(self, update: np.ndarray) -> np.ndarray:
        """NorMuon, arXiv:2510.05491: a mean square for each neuron, that is for each output."""
        square = np.mean(update**2, axis=0)
        self.neurons = np.zeros_like(square) if self.neurons is None else self.neurons
        self.neurons = self.normuon_beta * self.neurons + (1 - self.normuon_beta) * square
        normed = update / (np.sqrt(self.neurons) + 1e-8)
        return normed * np.linalg.norm(update) / np.linalg.norm(normed)
