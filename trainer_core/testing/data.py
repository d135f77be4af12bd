"""What every data source must hold to: a batch follows from its step, no example comes twice."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import attrs
import numpy as np

from trainer_core.axes import AxisRules
from trainer_core.testing.parts import kinds
from trainer_core.testing.suite import Suite
from trainer_core.types import Data


class DataSuite(Suite):
    """The tests of a data source: subclass it, and name the source.

    class TestShards(DataSuite):
        use = "shards"

    Where it is known which examples there are, `examples` gives them: then all of them must come,
    each once in an epoch. Otherwise it is only tried that none comes twice.

    Attributes:
        steps: how many it is asked for: no example comes twice within them.
        is_seeded: whether another `run.seed` gives other batches.
    """

    slot = "data"
    steps: ClassVar[int] = 8
    is_seeded: ClassVar[bool] = True

    def test_every_batch_is_of_one_kind(self) -> None:
        source = self.source()
        found = [kinds(source.batch(step)) for step in range(self.steps)]
        for step, kind in enumerate(found):
            if kind != found[0]:
                self.fail(f"batch 0 is {found[0]}, and batch {step} is {kind}: pad what is short")

    def test_a_batch_has_the_rows_of_this_process(self) -> None:
        for process in range(2):
            rows, batch = self.rows(2)[process], self.source(process, 2).batch(0)
            wrong = {name: len(array) for name, array in batch.items() if len(array) != len(rows)}
            if wrong:
                self.fail(f"of {len(rows)} rows (run.rows), process {process} gives {wrong}")

    def test_a_batch_follows_from_its_step(self) -> None:
        source = self.source()
        in_order = [source.batch(step) for step in range(self.steps)]
        if source.state() is not None:
            return  # a stream gives them in order, and no other way
        alone = [self.source().batch(step) for step in reversed(range(self.steps))][::-1]
        for step, (one, two) in enumerate(zip(in_order, alone, strict=True)):
            self._check_equal(one, two, f"batch({step})", "after those before it", "alone")

    def test_no_example_comes_twice(self) -> None:
        source = self.source()
        seen: dict[bytes, tuple[int, int]] = {}
        for step in range(self.steps):
            for row, example in enumerate(_examples(source.batch(step))):
                if example in seen:
                    self.fail(
                        f"row {row} of batch {step} was row {seen[example][1]} of batch "
                        f"{seen[example][0]}: each example comes once before any comes again; if "
                        f"there are fewer than {self.steps} batches of them, lower `steps`"
                    )
                seen[example] = (step, row)

    def test_all_examples_come_once_in_each_epoch(self) -> None:
        examples = self.examples()
        if examples is None:
            return  # that none comes twice is all that can be tried
        first = self.source().batch(0)
        rows = [_as_row(example, first) for example in examples]
        wanted, stream = Counter(rows), list[bytes]()
        source, step = self.source(), 0
        for epoch in range(2):  # which may begin amid a batch
            while len(stream) < wanted.total():
                stream += _counted(source.batch(step))
                step += 1
                if step > 4 * wanted.total():  # two epochs, of which half the batches are empty
                    self.fail(
                        f"{step} batches hold no {2 * wanted.total()} rows whose weight counts"
                    )
            came = Counter(stream[: wanted.total()])
            del stream[: wanted.total()]
            if missing := wanted - came:
                index = next(index for index, row in enumerate(rows) if row in missing)
                self.fail(
                    f"{missing.total()} of {wanted.total()} examples do not come in epoch {epoch}, "
                    f"such as number {index} of `examples`: others come in their place, or again"
                )

    def test_processes_share_a_batch_out(self) -> None:
        for step in (0, self.steps - 1):
            whole = _examples(self._at(step))
            for processes in (2, 4):
                together = [
                    example
                    for process in range(processes)
                    for example in _examples(self._at(step, process, processes))
                ]
                if together != whole:
                    self.fail(
                        f"the rows of {processes} processes together are not those of one, at step "
                        f"{step}: give run.rows of the global batch, which follows from the step"
                    )

    def test_processes_share_what_is_held_out(self) -> None:
        alone = self.source()
        if not alone.held_out_batches:
            return
        for processes in (2, 4):
            shares = [self.source(process, processes) for process in range(processes)]
            counts = [share.held_out_batches for share in shares]
            if counts != [alone.held_out_batches] * processes:
                self.fail(
                    f"{processes} processes hold out {counts} batches, one alone "
                    f"{alone.held_out_batches}: all of them must have the same number"
                )
            together = [example for share in shares for example in _examples(share.held_out(0))]
            if together != _examples(alone.held_out(0)):
                self.fail(
                    f"the held-out rows of {processes} processes together are not those of one: "
                    f"give run.rows of each batch there too, or a loss counts rows several times"
                )

    def test_a_resumed_source_goes_on_with_the_next_batch(self) -> None:
        half = self.steps // 2
        source = self.source()
        for step in range(half):
            source.batch(step)
        position = self._position(source)
        rest = [source.batch(step) for step in range(half, self.steps)]
        fresh = self.source()
        if position is not None:
            fresh.load(position)
        for step, wanted in enumerate(rest, half):
            self._check_equal(fresh.batch(step), wanted, f"batch({step})", "resumed", "unbroken")

    def test_another_seed_gives_another_order(self) -> None:
        if not self.is_seeded:
            return
        others = _examples(self.source(seed=1).batch(0))
        if others == _examples(self.source().batch(0)):
            self.fail("run.seed changes nothing; if it is not meant to, say is_seeded = False")

    def test_what_is_held_out_is_never_trained_on(self) -> None:
        source = self.source()
        if not source.held_out_batches:
            return
        trained = {
            example for step in range(self.steps) for example in _examples(source.batch(step))
        }
        other = self.source()
        for index in range(min(self.steps, source.held_out_batches)):
            batch = source.held_out(index)
            self._check_equal(
                batch, other.held_out(index), f"held_out({index})", "here", "in another run"
            )
            if leaked := trained & set(_counted(batch)):
                self.fail(f"{len(leaked)} rows of held_out({index}) are trained on")

    def test_a_text_comes_back_from_its_tokens(self) -> None:
        source = self.source()
        text = "A plain text, 12 words? No: 7.\n"
        try:
            tokens = source.encode(text)
        except NotImplementedError:
            return  # it has no tokenizer
        if source.decode(tokens) != text:
            self.fail(f"{text!r} becomes {tokens.tolist()}, and that {source.decode(tokens)!r}")
        if source.vocabulary is not None and tokens.size and tokens.max() >= source.vocabulary:
            self.fail(f"its token {tokens.max()} is beyond its vocabulary of {source.vocabulary}")

    # ------------------------------------------------------------------

    @classmethod
    def examples(cls) -> Sequence[Mapping[str, Any]] | None:
        """Return all training examples, each as a row of a batch: name to array; None: not known.

        Make them from what the source reads, and not by the source.
        """
        return None

    @classmethod
    def source(cls, process: int = 0, processes: int = 1, seed: int = 0) -> Data:
        """Return a source made anew, for one process of several."""
        parts = cls.opened(run={"seed": seed})
        rows = cls.rows(processes)[process]
        axes = _RowsOf(parts.run.mesh, parts.run.axes.rules, own=rows)
        run = attrs.evolve(parts.run, process=process, processes=processes, axes=axes)
        return parts.hooks.build_data(run=run)

    @classmethod
    def rows(cls, processes: int) -> list[range]:
        """Return the rows of each process."""
        size = cls.opened().run.batch_size
        if size % 4:
            cls.fail(f"its batch_size is {size}; in `settings`, make it a multiple of 4")
        part = size // processes
        return [range(at * part, (at + 1) * part) for at in range(processes)]

    def _position(self, source: Data) -> Any:
        position = source.state()
        try:
            return json.loads(json.dumps(position))
        except TypeError as error:
            self.fail(f"`state` returns what is no JSON value, {position}: {error}")

    def _at(self, step: int, process: int = 0, processes: int = 1) -> dict[str, Any]:
        source = self.source(process, processes)
        if source.state() is not None:
            for before in range(step):
                source.batch(before)
        return source.batch(step)

    def _check_equal(self, found: Any, wanted: Any, what: str, one: str, two: str) -> None:
        different = [
            name for name in wanted if not np.array_equal(found.get(name), wanted[name], True)
        ]
        if different:
            self.fail(f"{what} is not the same {one} as {two}: {', '.join(different)} differ")


@attrs.frozen(eq=False)
class _RowsOf(AxisRules):
    """The axes of a process that holds these rows, wherever its devices are."""

    own: range = attrs.field(kw_only=True)

    def batch_rows(self, size: int, process: int) -> range:
        return self.own


def _examples(batch: dict[str, Any]) -> list[bytes]:
    """Return each row of a batch as bytes, of all its arrays."""
    arrays = list(batch.values())
    return [
        b"".join(np.ascontiguousarray(array[row]).tobytes() for array in arrays)
        for row in range(len(arrays[0]))
    ]


def _as_row(example: Mapping[str, Any], batch: dict[str, Any]) -> bytes:
    """Return an example as `_examples` returns the rows of a batch."""
    return b"".join(np.asarray(example[name], like.dtype).tobytes() for name, like in batch.items())


def _counted(batch: dict[str, Any]) -> list[bytes]:
    """Return the rows that count: padding does not."""
    weights = batch.get("weights")
    return [
        example
        for row, example in enumerate(_examples(batch))
        if weights is None or np.any(weights[row] != 0)
    ]
