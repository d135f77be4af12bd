"""Data sources that look right, and what DataSuite says of each: its test, and its words."""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np

from trainer_core import Data, hookimpl, plugin, setting
from trainer_core.templates.data import Example
from trainer_core.testing import DataSuite

SAID = {
    "TestRestless": ("test_a_batch_follows_from_its_step", "is not the same after those before"),
    "TestShort": ("test_every_batch_is_of_one_kind", "pad what is short"),
    "TestTwice": ("test_no_example_comes_twice", "each example comes once"),
    "TestHalf": (
        "test_all_examples_come_once_in_each_epoch",
        "128 of 256 examples do not come in epoch 0",
    ),
    "TestAgain": (
        "test_all_examples_come_once_in_each_epoch",
        "1 of 256 examples do not come in epoch 1",
    ),
    "TestEmpty": ("test_all_examples_come_once_in_each_epoch", "1025 batches hold no 512 rows"),
    "TestSelfish": ("test_a_batch_has_the_rows_of_this_process", "(run.rows)"),
    "TestOverlapping": ("test_processes_share_a_batch_out", "are not those of one"),
    "TestLeaky": ("test_what_is_held_out_is_never_trained_on", "are trained on"),
    "TestForgetful": ("test_a_resumed_source_goes_on_with_the_next_batch", "resumed as unbroken"),
    "TestLive": ("test_a_resumed_source_goes_on_with_the_next_batch", "is no JSON value"),
    "TestHoldingAll": ("test_processes_share_what_is_held_out", "counts rows several times"),
    "TestOdd": ("test_processes_share_a_batch_out", "a multiple of 4"),
    "TestLossy": ("test_a_text_comes_back_from_its_tokens", "becomes"),
    "TestDeaf": ("test_another_seed_gives_another_order", "run.seed changes nothing"),
}


# Counted from a place of their own: no two are the same.
EXAMPLES = [
    {
        "tokens": (np.arange(64) + row).astype(np.int32),
        "targets": (np.arange(1, 65) + row).astype(np.int32),
        "weights": np.ones(64, np.float32),
    }
    for row in range(256)
]


class Changed(Data):
    """The walks of the template, but for one thing."""

    def __init__(self, source: Data, run: Any) -> None:
        self.source, self.run = source, run
        self.held_out_batches = source.held_out_batches

    def batch(self, step: int) -> dict[str, Any]:
        return self.source.batch(step)

    def held_out(self, index: int) -> dict[str, Any]:
        return self.source.held_out(index)


class Restless(Changed):
    at = -1

    def batch(self, step: int) -> dict[str, Any]:
        self.at += 1
        return self.source.batch(self.at)


class Short(Changed):
    def batch(self, step: int) -> dict[str, Any]:
        batch = self.source.batch(step)
        return {name: rows[:, : 64 - step] for name, rows in batch.items()}


class Twice(Changed):
    def batch(self, step: int) -> dict[str, Any]:
        return self.source.batch(step % 3)


class Half(Changed):
    """Of 256 examples the first half: none of them twice before all of that half came."""

    count = 128

    def batch(self, step: int) -> dict[str, Any]:
        epoch, first = divmod(step * 16, self.count)
        order = np.random.default_rng([self.run.settings.seed, epoch]).permutation(self.count)[
            first : first + 16
        ]
        own = order[self.run.rows.start : self.run.rows.stop]
        return {name: np.stack([EXAMPLES[row][name] for row in own]) for name in EXAMPLES[0]}


class Again(Half):
    """All of them, but for one of the second epoch, in whose place another comes again."""

    count = 256

    def batch(self, step: int) -> dict[str, Any]:
        batch = super().batch(step)
        if step == 16 + 15:
            for rows in batch.values():
                rows[-1] = rows[0]
        return batch


class Empty(Changed):
    """Nothing in it counts."""

    def batch(self, step: int) -> dict[str, Any]:
        rows = self.source.batch(step)
        return rows | {"weights": np.zeros(len(self.run.rows), np.float32)}


class Selfish(Changed):
    def batch(self, step: int) -> dict[str, Any]:
        batch = self.source.batch(step)
        rest = self.run.batch_size - len(self.run.rows)
        return {name: np.concatenate([rows, rows[:rest]]) for name, rows in batch.items()}


class Overlapping(Changed):
    def batch(self, step: int) -> dict[str, Any]:
        return self.source.batch(step + 100 * self.run.process)


class Leaky(Changed):
    def held_out(self, index: int) -> dict[str, Any]:
        return self.source.batch(index)


class Forgetful(Restless):
    def state(self) -> dict[str, Any]:
        return {"at": self.at}


class Live(Restless):
    def state(self) -> dict[str, Any]:
        return {"at": np.int64(self.at)}


class HoldingAll(Changed):
    def held_out(self, index: int) -> dict[str, Any]:
        alone = attrs.evolve(self.run, process=0, processes=1)
        return Example().build_data(alone).held_out(index)


class Lossy(Changed):
    def encode(self, text: str) -> Any:
        return np.frombuffer(text.lower().encode(), np.uint8)

    def decode(self, tokens: Any) -> str:
        return bytes(tokens).decode()


KINDS = {cls.__name__: cls for cls in (Restless, Short, Twice, Selfish, Overlapping, Leaky)}
KINDS |= {cls.__name__: cls for cls in (Forgetful, Live, HoldingAll, Lossy, Half, Again, Empty)}


@plugin
class Source:
    batch_size: int = setting(16, "of all processes together", unit="sequences")
    kind: str = setting("Restless", "what is wrong with it")

    @hookimpl
    def build_data(self, run: Any) -> Data:
        return KINDS[self.kind](Example().build_data(run), run)


@plugin
class Deaf:
    batch_size: int = setting(16, "of all processes together", unit="sequences")

    @hookimpl
    def build_data(self, run: Any) -> Data:
        settings = attrs.evolve(run.settings, seed=0)
        return Example().build_data(attrs.evolve(run, settings=settings))


class Suite(DataSuite):
    use = "sources:Source"


class TestRestless(Suite):
    settings = {"kind": "Restless"}


class TestShort(Suite):
    settings = {"kind": "Short"}


class TestTwice(Suite):
    settings = {"kind": "Twice"}


class TestHalf(Suite):
    settings = {"kind": "Half"}

    @classmethod
    def examples(cls) -> list[dict[str, Any]]:
        return EXAMPLES


class TestAgain(TestHalf):
    settings = {"kind": "Again"}


class TestEmpty(Suite):
    settings = {"kind": "Empty"}

    @classmethod
    def examples(cls) -> list[dict[str, Any]]:
        return [example | {"weights": 1.0} for example in EXAMPLES]


class TestSelfish(Suite):
    settings = {"kind": "Selfish"}


class TestOverlapping(Suite):
    settings = {"kind": "Overlapping"}


class TestLeaky(Suite):
    settings = {"kind": "Leaky"}


class TestForgetful(Suite):
    settings = {"kind": "Forgetful"}


class TestLive(Suite):
    settings = {"kind": "Live"}


class TestHoldingAll(Suite):
    settings = {"kind": "HoldingAll"}


class TestOdd(Suite):
    settings = {"kind": "Twice", "batch_size": 6}


class TestLossy(Suite):
    settings = {"kind": "Lossy"}


class TestDeaf(DataSuite):
    use = "sources:Deaf"
