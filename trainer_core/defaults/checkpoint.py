"""No checkpoints: for tries that need not go on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainer_core.plugin import hookimpl, plugin

if TYPE_CHECKING:
    from trainer_core.run import Run


@plugin
class NoCheckpoint:
    """Saves nothing; every run starts from the beginning."""

    @hookimpl
    def restore(self, run: Run) -> None:
        return None

    @hookimpl
    def save(self, run: Run) -> None:
        return None
