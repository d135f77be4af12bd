"""What an error suggests for a name that nobody knows."""

from __future__ import annotations

import pytest

from trainer_core.suggest import did_you_mean

RUN = ["name", "directory", "seed", "steps", "log_every", "eval_every", "eval_batches"]
DATA = ["batch_size", "length", "path", "held_out"]
SCHEDULE = ["learning_rate", "warmup", "final"]
DTYPES = ["param_dtype", "compute_dtype", "dropout"]


@pytest.mark.parametrize(
    ("name", "known", "expected"),
    [
        ("stesp", RUN, ["steps"]),
        ("Log-Every", RUN, ["log_every"]),
        ("dir", RUN, ["directory"]),
        ("total_steps", RUN, ["steps"]),
        ("eval", RUN, ["eval_every", "eval_batches"]),
        ("batch", DATA, ["batch_size"]),  # spelled as much like `path`
        ("sequence_length", DATA, ["length"]),
        ("lr", SCHEDULE, ["learning_rate"]),
        ("rate", SCHEDULE, ["learning_rate"]),
        ("warmup_steps", SCHEDULE, ["warmup"]),
        ("dtype", DTYPES, ["param_dtype", "compute_dtype"]),
        ("epochs", RUN, []),
        ("momentum", SCHEDULE, []),
        ("a", ["a_b", "a_c", "ab"], ["ab"]),  # one letter is no word
        ("kernel", [f"layers/attention/{each}/kernel" for each in "qkvo"], []),  # too many
        ("", RUN, []),
    ],
)
def test_a_name_is_near_by_its_letters_or_by_its_words(
    name: str, known: list[str], expected: list[str]
) -> None:
    hint = f" (did you mean {' or '.join(map(repr, expected))}?)" if expected else ""
    assert did_you_mean(name, known) == hint
