"""`[schedule]`: the learning rate by the number of updates applied, from optax."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from attrs.validators import and_, ge, gt, le

from trainer_core.errors import UserError
from trainer_core.plugin import hookimpl, plugin, setting

if TYPE_CHECKING:
    from trainer_core.run import Run

Schedule = Callable[[Any], Any]
_SHARE = and_(ge(0), le(1))


def _peak() -> Any:
    return setting(1e-3, "the peak learning rate", check=gt(0))


def _warmup() -> Any:
    return setting(100, "rise linearly from 0 to the peak in this time", unit="steps", check=ge(0))


def _final() -> Any:
    return setting(0.1, "where it ends, as a fraction of the peak", check=_SHARE)


@plugin
class Constant:
    """Warm up, then stay."""

    learning_rate: float = _peak()
    warmup: int = _warmup()

    @hookimpl
    def build_schedule(self, run: Run) -> Schedule:
        import optax

        return _after_warmup(
            self.learning_rate, self.warmup, optax.constant_schedule(self.learning_rate), run
        )


@plugin
class Linear:
    """Warm up, then fall along a line until the last step."""

    learning_rate: float = _peak()
    warmup: int = _warmup()
    final: float = _final()

    @hookimpl
    def build_schedule(self, run: Run) -> Schedule:
        import optax

        peak, length = self.learning_rate, _remaining(run, self.warmup)
        fall = optax.linear_schedule(peak, peak * self.final, length)
        return _after_warmup(peak, self.warmup, fall, run)


@plugin
class Cosine:
    """Warm up, then fall along half a cosine until the last step."""

    learning_rate: float = _peak()
    warmup: int = _warmup()
    final: float = _final()

    @hookimpl
    def build_schedule(self, run: Run) -> Schedule:
        import optax

        peak, length = self.learning_rate, _remaining(run, self.warmup)
        fall = optax.cosine_decay_schedule(peak, length, alpha=self.final)
        return _after_warmup(peak, self.warmup, fall, run)


@plugin
class WarmupStableDecay:
    """Warm up, stay, and fall along a line over the last part of the run (WSD)."""

    learning_rate: float = _peak()
    warmup: int = _warmup()
    final: float = _final()
    decay: float = setting(0.2, "the last part of the run, as a fraction of it", check=_SHARE)

    @hookimpl
    def build_schedule(self, run: Run) -> Schedule:
        import optax

        peak, length = self.learning_rate, _remaining(run, self.warmup)
        falling = max(1, min(length, round(self.decay * run.settings.steps)))
        fall = optax.linear_schedule(peak, peak * self.final, falling, length - falling)
        return _after_warmup(peak, self.warmup, fall, run)


def _remaining(run: Run, warmup: int) -> int:
    if warmup >= run.settings.steps:
        raise UserError(
            f"[schedule] warmup = {warmup} leaves nothing of [run] steps = {run.settings.steps}; "
            f"make it smaller: schedule.warmup={run.settings.steps // 10}"
        )
    return run.settings.steps - warmup


def _after_warmup(peak: float, warmup: int, then: Schedule, run: Run) -> Schedule:
    import optax

    if warmup == 0:
        return then
    _remaining(run, warmup)
    # From the first step on: a rate of 0 at step 0 would waste that step.
    rise = optax.linear_schedule(peak / warmup, peak, max(1, warmup - 1))
    joined: Schedule = optax.join_schedules([rise, then], [warmup])
    return joined
