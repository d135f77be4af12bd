"""`[schedule]`: the learning rate by the number of updates applied, from optax."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from attrs.validators import and_, ge, gt, le

from trainer_core.errors import SettingError
from trainer_core.plugin import hookimpl, plugin, setting
from trainer_core.settings import in_float32

if TYPE_CHECKING:
    from trainer_core.run import Run

Schedule = Callable[[Any], Any]
_SHARE = and_(ge(0), le(1))


def _final() -> Any:
    return setting(0.1, "where it ends, as a fraction of the peak", check=_SHARE)


@plugin
class _Warmed:
    """What every schedule here begins with."""

    learning_rate: float = setting(
        4e-3,
        "the peak learning rate; the default suits the tiny preset",
        check=and_(gt(0), in_float32),
    )
    warmup: int | None = setting(
        None,
        "rise linearly to the peak in this time; a tenth of the run, at most 100, if not given",
        unit="steps",
        check=ge(0),
    )

    def check(self, config: Mapping[str, Any]) -> None:
        steps = config["run"]["steps"]
        if self.warmup is not None and self.warmup >= steps:
            raise SettingError(
                "warmup", f"leaves nothing of [run] steps = {steps}; try {steps // 10}"
            )


@plugin
class Constant(_Warmed):
    """Warm up, then stay."""

    @hookimpl
    def build_schedule(self, run: Run) -> Schedule:
        import optax

        rise = _warmup_steps(run, self.warmup)
        return _after_warmup(self.learning_rate, rise, optax.constant_schedule(self.learning_rate))


@plugin
class Linear(_Warmed):
    """Warm up, then fall along a line until the last step."""

    final: float = _final()

    @hookimpl
    def build_schedule(self, run: Run) -> Schedule:
        import optax

        peak, rise = self.learning_rate, _warmup_steps(run, self.warmup)
        length = run.settings.steps - rise
        fall = optax.linear_schedule(peak, peak * self.final, length)
        return _after_warmup(peak, rise, fall)


@plugin
class Cosine(_Warmed):
    """Warm up, then fall along half a cosine until the last step."""

    final: float = _final()

    @hookimpl
    def build_schedule(self, run: Run) -> Schedule:
        import optax

        peak, rise = self.learning_rate, _warmup_steps(run, self.warmup)
        length = run.settings.steps - rise
        fall = optax.cosine_decay_schedule(peak, length, alpha=self.final)
        return _after_warmup(peak, rise, fall)


@plugin
class WarmupStableDecay(_Warmed):
    """Warm up, stay, and fall along a line over the last part of the run (WSD)."""

    final: float = _final()
    decay: float = setting(0.2, "the last part of the run, as a fraction of it", check=_SHARE)

    @hookimpl
    def build_schedule(self, run: Run) -> Schedule:
        import optax

        peak, rise = self.learning_rate, _warmup_steps(run, self.warmup)
        length = run.settings.steps - rise
        falling = max(1, min(length, round(self.decay * run.settings.steps)))
        fall = optax.linear_schedule(peak, peak * self.final, falling, length - falling)
        return _after_warmup(peak, rise, fall)


def _warmup_steps(run: Run, warmup: int | None) -> int:
    return min(100, run.settings.steps // 10) if warmup is None else warmup


def _after_warmup(peak: float, warmup: int, then: Schedule) -> Schedule:
    import optax

    if warmup == 0:
        return then
    # From the first step on: a rate of 0 at step 0 would waste that step.
    rise = optax.linear_schedule(peak / warmup, peak, max(1, warmup - 1))
    joined: Schedule = optax.join_schedules([rise, then], [warmup])
    return joined
