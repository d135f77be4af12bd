"""`[plugins.progress]`: what a person sees of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainer_core.plugin import hookimpl, plugin, setting

if TYPE_CHECKING:
    from trainer_core.types import Metrics


@plugin
class Progress:
    style: str = setting("auto", "how to show it", choices=("auto", "live", "plain", "json", "quiet"))

    @hookimpl
    def report(self, step: int, metrics: Metrics) -> None:
        print(step, metrics)

    @hookimpl
    def phase(self, name: str) -> None:
        import time
        print(time.monotonic(), name)
