"""Text that a model writes: where it begins, and how to show it on a terminal."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np

from trainer_core.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trainer_core.program import Program
    from trainer_core.types import Data, TrainState

TEMPERATURE = 0.7
_PROMPT = 40  # characters of the held-out text that a sample begins with


def can_write(program: Program) -> bool:
    """Whether the model predicts tokens that the data can turn into text."""
    return program.model.logits is not None and has_text(program.data)


def has_text(data: Data) -> bool:
    """Whether a data source has a tokenizer of its own."""
    from trainer_core.types import Data

    return type(data).encode is not Data.encode and type(data).decode is not Data.decode


def default_prompt(program: Program) -> str:
    """Return the beginning of a line of text that the model was not trained on.

    Raises:
        UserError: the data does not deal in text.
    """
    data = _text(program)
    rows = data.held_out(0) if data.held_out_batches else data.batch(0)
    text = str(data.decode(rows["tokens"][0]))
    _, newline, line = text.partition("\n")
    return (line if newline and line.strip() else text)[:_PROMPT]


def write(
    program: Program,
    state: TrainState,
    prompt: str,
    length: int,
    temperature: float = TEMPERATURE,
    seed: int = 0,
) -> tuple[str, str]:
    """Return the prompt as the model reads it, and what the model adds to it.

    Raises:
        UserError: the model or the data do not deal in text.
    """
    import jax

    from trainer_core.sampling import sample
    from trainer_core.signals import interruptible

    data = _text(program)
    tokens: NDArray[Any] = np.asarray(data.encode(prompt))
    written = interruptible(
        lambda: sample(program, state, tokens, length, temperature, jax.random.key(seed))
    )
    return str(data.decode(tokens)), str(data.decode(written[len(tokens) :]))


def _text(program: Program) -> Data:
    data = program.data
    if not has_text(data):
        raise UserError(
            f"this data holds no text: {type(data).__name__} has no encode and decode; "
            f"trainer_core.sampling.sample works on tokens"
        )
    return data


def printable(text: str) -> str:
    """Return text without the control characters by which it could act on a terminal."""
    return "".join(each if each.isprintable() or each in "\n\t" else "�" for each in text)


def cut_into_lines(text: str, width: int) -> list[str]:
    """Return printable lines of at most `width` columns, with nothing left out."""
    lines = []
    for line in printable(text).expandtabs(4).split("\n"):
        lines += textwrap.wrap(
            line, width, drop_whitespace=False, replace_whitespace=False, break_on_hyphens=False
        ) or [""]
    return lines
