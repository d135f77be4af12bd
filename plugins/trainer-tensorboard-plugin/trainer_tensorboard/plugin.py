"""`[plugins.tensorboard]`: what a run reports, in an event file of its run directory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

from trainer_core import hookimpl, plugin
from trainer_tensorboard.names import tag_of

if TYPE_CHECKING:
    from trainer_core import Run
    from trainer_core.types import Metrics


@plugin
class TensorBoard:
    """Each number of each reported step, and the config; on process 0 alone."""

    file: Any = attrs.field(init=False, default=None)  # an EventFile, whose module is slow

    @hookimpl
    def start(self, run: Run, step: int) -> None:
        if not run.is_main:
            return
        from trainer_tensorboard.events import EventFile

        self.file = EventFile(run.directory, step)
        # Not where the processes were: that says nothing of what is trained.
        table = {name: each for name, each in run.config.items() if name != "distributed"}
        self.file.config(step, table, [tag_of("loss"), tag_of("eval_loss")])

    @hookimpl
    def report(self, step: int, metrics: Metrics) -> None:
        if self.file is not None:
            shown = {tag_of(name): each for name, each in metrics.items() if name[0] != "_"}
            self.file.scalars(step, shown)

    @hookimpl
    def close(self, error: BaseException | None) -> None:
        file, self.file = self.file, None
        if file is not None:
            file.close(is_whole=error is None)
