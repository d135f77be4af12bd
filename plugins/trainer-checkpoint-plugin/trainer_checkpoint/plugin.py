"""The plugin `orbax`: asynchronous, digested checkpoints, restored straight into shards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import uuid4

import attrs
from attrs.validators import ge

from trainer_core.plugin import hookimpl, plugin, setting

if TYPE_CHECKING:
    from pathlib import Path

    from trainer_checkpoint.writer import Writer
    from trainer_core.run import Run
    from trainer_core.types import Data, TrainState

# jax and Orbax are imported inside the hooks: a config is checked without them.


@plugin
class Orbax:
    """Saves the whole state of a run with Orbax, and restores the newest that can be trusted."""

    every: int = setting(
        100, "save this often, and at the end", unit="steps", check=ge(1), may_change=True
    )
    keep: int = setting(2, "how many of the newest checkpoints stay", check=ge(1), may_change=True)
    keep_every: int | None = setting(
        None,
        "those at a multiple of this stay for ever",
        unit="steps",
        check=ge(1),
        may_change=True,
    )
    _writer: Any = attrs.field(default=None, init=False)
    _newest: int | None = attrs.field(default=None, init=False)
    _mark: str = attrs.field(default="", init=False)

    @hookimpl
    def restore(self, run: Run, like: TrainState, data: Data) -> TrainState | None:
        from trainer_checkpoint.reader import read_newest

        # Not at the first save: one that is killed by then would be missed only after the timeout.
        self._mark = _mark(run)
        found = read_newest(run, _directory(run), like)
        if found is None:
            return None
        self._newest = found.step
        if found.position is not None:
            data.load(found.position)
        return found.state

    @hookimpl
    def save(self, run: Run, step: int, state: TrainState, data: Data) -> None:
        from trainer_checkpoint.contents import contents

        if step == self._newest:  # a run that stops before it has made a step
            return
        if self._writer is None:
            self._writer = self._open(run)
        if not self._mark:  # a conversion restores nothing
            self._mark = _mark(run)
        self._writer.save(step, *contents(run, step, state, data.state(), self._mark))
        self._newest = step

    @hookimpl
    def report(self) -> None:
        if self._writer is not None:
            self._writer.check()  # sooner than the save, where that comes after an evaluation

    @hookimpl
    def close(self, run: Run, error: BaseException | None) -> None:
        writer, self._writer = self._writer, None
        if writer is None:
            return
        try:
            writer.close()
        except Exception as failure:
            if error is None:
                raise
            error.add_note(str(failure))

    def _open(self, run: Run) -> Writer:
        from trainer_checkpoint.writer import Writer

        return Writer(
            _directory(run),
            keep=self.keep,
            keep_every=self.keep_every,
            is_main=run.is_main,
            resumed=self._newest,
            failed=run.stop,  # after the step under way: the save then raises the error instead
        )


def _directory(run: Run) -> Path:
    return run.directory / "checkpoints"


def _mark(run: Run) -> str:
    """What all processes of a run have in common, and no other run of it."""
    return str(run.gather(uuid4().hex if run.is_main else None)[0])
