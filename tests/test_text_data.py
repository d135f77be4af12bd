"""Batches of text: each window once an epoch, and none that is held out."""

from __future__ import annotations

import os
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from trainer_core.defaults.text_data import TextData
from trainer_core.defaults.windows import Windows
from trainer_core.errors import UserError

LENGTH = 8


@pytest.fixture
def numbered(tmp_path: Path) -> Path:
    """A file in which any LENGTH + 1 bytes tell where they stand: a counter in each 4 bytes."""
    file = tmp_path / "numbered.bin"
    np.arange(2_300, dtype=">u4").tofile(file)
    return file


def make(path: Path, **settings: Any) -> Windows:
    return Windows(
        path=str(path), **({"length": LENGTH, "batch_size": 4, "held_out": 0.1} | settings)
    )


def starts(text: bytes, batch: dict[str, NDArray[Any]]) -> list[int]:
    """Return where in the text each row of a batch that counts was read."""
    found = []
    for tokens, targets, weights in zip(*batch.values(), strict=True):
        assert tokens[1:].tolist() == targets[:-1].tolist()
        window = bytes(tokens.astype(np.uint8)) + bytes(targets[-1:].astype(np.uint8))
        assert text.count(window) == 1
        assert set(weights.tolist()) in ({0.0}, {1.0})
        if weights[0]:
            found.append(text.index(window))
    return found


def global_starts(path: Path, steps: int, processes: int = 1, **settings: Any) -> list[int]:
    """Return where the rows of the first steps were read, in the order of the global batch."""
    parts = [
        make(path, process=process, processes=processes, **settings) for process in range(processes)
    ]
    text = path.read_bytes()
    return [at for step in range(steps) for part in parts for at in starts(text, part.batch(step))]


# ---------------------------------------------------------------------- what training sees


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("batch_size", [4, 12, 2_000])
def test_each_window_comes_exactly_once_an_epoch(
    numbered: Path, batch_size: int, processes: int
) -> None:
    windows = len(make(numbered).training)
    assert windows % batch_size  # so that epochs end amid a batch
    epochs = 3
    seen = global_starts(
        numbered, -(-epochs * windows // batch_size), processes, batch_size=batch_size
    )
    for epoch in range(epochs):
        part = seen[epoch * windows : (epoch + 1) * windows]
        assert sorted(part) == [LENGTH * window for window in range(windows)]


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_batch_of_one_process(numbered: Path, processes: int) -> None:
    assert global_starts(numbered, 5, processes) == global_starts(numbered, 5)


def test_epochs_and_seeds_have_different_orders(numbered: Path) -> None:
    windows = len(make(numbered).training)
    orders = [global_starts(numbered, 2, batch_size=windows, seed=seed) for seed in (0, 1)]
    first, second = orders[0][:windows], orders[0][windows:]
    assert len({tuple(first), tuple(second), tuple(orders[1][:windows])}) == 3


def test_a_batch_depends_on_the_step_alone(numbered: Path) -> None:
    forward, backward = make(numbered), make(numbered)
    batches = [forward.batch(step) for step in range(40)]
    for step in reversed(range(40)):
        again = backward.batch(step)
        assert all((batches[step][name] == again[name]).all() for name in again)


def test_a_batch_has_the_shapes_and_dtypes_of_the_contract(numbered: Path) -> None:
    batch = make(numbered, batch_size=6, processes=2).batch(0)
    assert {name: (array.shape, array.dtype.name) for name, array in batch.items()} == {
        "tokens": ((3, LENGTH), "int32"),
        "targets": ((3, LENGTH), "int32"),
        "weights": ((3, LENGTH), "float32"),
    }
    assert all(array.flags.c_contiguous for array in batch.values())
    assert (batch["weights"] == 1).all()


def test_a_late_step_costs_no_more_than_the_first(numbered: Path) -> None:
    windows = make(numbered)
    late = windows.batch(2**31)  # a list of the order so far would have 2**33 entries
    assert len(starts(numbered.read_bytes(), late)) == 4


def test_a_batch_that_processes_cannot_share_is_an_error(numbered: Path) -> None:
    with pytest.raises(UserError, match=r"\[data\] batch_size = 6: .* 4 processes.* multiple of 4"):
        make(numbered, batch_size=6, processes=4)


# ---------------------------------------------------------------------- what it never sees


@pytest.mark.parametrize("held_out", [0.01, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("rest", range(LENGTH))
def test_no_held_out_byte_is_ever_read_or_predicted_in_training(
    numbered: Path, held_out: float, rest: int
) -> None:
    os.truncate(numbered, 100 * LENGTH + rest)
    text = numbered.read_bytes()
    windows = make(numbered, held_out=held_out)
    steps = -(-len(windows.training) // windows.batch_size)
    trained = global_starts(numbered, steps, held_out=held_out)
    kept = held_out_starts(text, windows)
    used = {byte for at in trained for byte in range(at, at + LENGTH + 1)}
    unseen = {byte for at in kept for byte in range(at, at + LENGTH + 1)}
    assert not used & unseen
    assert max(used) < min(unseen)  # the tail, as promised
    assert len(text) - len(used | unseen) < LENGTH  # and but for a last partial window, all of it
    assert len(kept) == round(held_out * (len(kept) + len(windows.training)))


@pytest.mark.parametrize("batch_size", [4, 64, 500])
@pytest.mark.parametrize("processes", [1, 4])
def test_each_held_out_window_counts_exactly_once(
    numbered: Path, batch_size: int, processes: int
) -> None:
    text = numbered.read_bytes()
    parts = [
        make(numbered, batch_size=batch_size, process=process, processes=processes)
        for process in range(processes)
    ]
    windows = len(parts[0].tail)
    assert windows % batch_size  # so that the last batch is padded
    kept = Counter(at for part in parts for at in held_out_starts(text, part))
    assert len(kept) == windows
    assert set(kept.values()) == {1}


def test_the_last_held_out_batch_is_padded_with_rows_of_weight_zero(numbered: Path) -> None:
    windows = make(numbered, batch_size=64)
    last = windows.held_out_batch(windows.held_out_batches - 1)
    counting = len(windows.tail) % 64
    assert last["tokens"].shape == (64, LENGTH)
    assert (last["weights"][:counting] == 1).all()
    assert (last["weights"][counting:] == 0).all()
    assert last["tokens"].max() < 256


def test_held_out_order_is_shuffled_and_depends_on_no_seed(numbered: Path) -> None:
    text = numbered.read_bytes()
    order = held_out_starts(text, make(numbered, seed=0))
    assert order == held_out_starts(text, make(numbered, seed=5))
    assert order != sorted(order)
    # Evaluating on a few batches samples the whole part: the rows do not depend on their number.
    assert order == held_out_starts(text, make(numbered, batch_size=7))


def test_nothing_is_held_out_where_nothing_was_asked_for(numbered: Path) -> None:
    windows = make(numbered, held_out=0.0)
    assert windows.held_out_batches == 0
    assert len(windows.training) == (numbered.stat().st_size - 1) // LENGTH
    assert "none held out" in windows.summary["size"]
    with pytest.raises(IndexError, match="held-out batch 0 of 0"):
        windows.held_out_batch(0)


def held_out_starts(text: bytes, windows: Windows) -> list[int]:
    batches = map(windows.held_out_batch, range(windows.held_out_batches))
    return [at for batch in batches for at in starts(text, batch)]


def test_a_worker_is_sent_the_settings_and_not_the_text(numbered: Path) -> None:
    windows = make(numbered)
    batch = windows.batch(3)
    sent = pickle.dumps(windows)
    assert len(sent) < 1000
    again = pickle.loads(sent).batch(3)
    assert all((batch[name] == again[name]).all() for name in batch)


# ---------------------------------------------------------------------- tokens


def test_tokens_are_the_bytes_of_a_text(numbered: Path) -> None:
    data = TextData(make(numbered))
    tokens = data.encode("é\n")
    assert tokens.tolist() == [0xC3, 0xA9, 0x0A]
    assert tokens.dtype == np.int32
    assert data.vocabulary == 256


def test_any_text_comes_back_from_its_tokens(numbered: Path) -> None:
    data = TextData(make(numbered))
    for text in ("", "plain", "żółć 😀 \0"):
        assert data.decode(data.encode(text)) == text


def test_tokens_that_are_no_text_are_shown_as_such(numbered: Path) -> None:
    data = TextData(make(numbered))
    assert data.decode(np.array([0x61, 0xC3, 0x62])) == "a�b"
    assert data.decode(np.array([0x61, 300, -1, 0x62])) == "a��b"
