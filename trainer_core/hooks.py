"""Hooks act: a plugin manager made for one run, typed calls, and the plugin's name in errors."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, cast

import attrs
import pluggy

from trainer_core import hookspecs
from trainer_core.config import Config
from trainer_core.defaults.evaluate import HeldOutLoss
from trainer_core.deprecations import naming_plugins
from trainer_core.errors import UserError
from trainer_core.group import Whereabouts
from trainer_core.hook_trace import is_seam, trace
from trainer_core.plugin import hookimpl

if TYPE_CHECKING:
    import jax
    import optax

    from trainer_core.program import Program
    from trainer_core.run import Run
    from trainer_core.types import (
        Data,
        GradFn,
        LossFn,
        Metrics,
        Model,
        Params,
        Shardings,
        Step,
        TrainState,
    )


# Nothing to restore is an answer; no model, and no step, is a forgotten `return`.
_MAY_BE_SILENT = ("restore", "describe_optimizer")


class Hooks(Protocol):
    """The calls of `hookspecs.TrainerSpec` as the core makes them: checked, by keyword."""

    def build_state(self, *, run: Run, batch: dict[str, jax.ShapeDtypeStruct]) -> Model: ...
    def build_schedule(self, *, run: Run) -> Callable[[Any], Any]: ...
    def build_optimizer(
        self, *, run: Run, model: Model, learning_rate: Callable[[Any], Any]
    ) -> optax.GradientTransformation: ...
    def describe_optimizer(self, *, run: Run, model: Model) -> dict[str, Any] | None: ...
    def build_data(self, *, run: Run) -> Data: ...
    def accumulate(self, *, run: Run, model: Model, loss: LossFn) -> GradFn: ...
    def step(
        self,
        *,
        run: Run,
        grad_fn: GradFn,
        optimizer: optax.GradientTransformation,
        learning_rate: Callable[[Any], Any],
    ) -> Step: ...
    def shard(
        self,
        *,
        run: Run,
        model: Model,
        abstract_state: TrainState,
        derive: Callable[[Params], tuple[Any, dict[str, Any]]],
    ) -> Shardings: ...
    def restore(self, *, run: Run, like: TrainState, data: Data) -> TrainState | None: ...
    def start(self, *, run: Run, program: Program, step: int) -> list[None]: ...
    def report(self, *, run: Run, step: int, metrics: Metrics) -> list[None]: ...
    def evaluate(self, *, run: Run, step: int, state: TrainState) -> list[Metrics]: ...
    def save(self, *, run: Run, step: int, state: TrainState, data: Data) -> list[None]: ...
    def phase(self, *, run: Run, name: str, program: Program | None) -> list[None]: ...
    def close(self, *, run: Run, error: BaseException | None) -> list[None]: ...


def register(config: Config) -> Hooks:
    """Return the hooks of a run, as the loop calls them; see `plugin_manager`."""
    manager = plugin_manager(config)
    if config.trace is not None:
        trace(manager, config.trace)
    manager.add_hookcall_monitoring(lambda *_: None, _blame)
    return cast(Hooks, _Calls(manager))


def plugin_manager(config: Config) -> pluggy.PluginManager:
    """Return the plugins of a run: the core's own observers, which answer last, and those chosen.

    Args:
        config: the resolved config.

    Raises:
        UserError: a plugin that pluggy refuses (a misspelled hook or argument), or two that
            answer a hook which only one may answer.
    """
    manager = pluggy.PluginManager("trainer")
    manager.add_hookspecs(hookspecs.TrainerSpec)
    seams: list[Any] = [_StepSeam()]
    manager.register(seams[0], "core.step-seam")
    manager.register(HeldOutLoss(), "core.evaluate")
    manager.register(Whereabouts(), "core.whereabouts")
    for table, chosen in config.chosen.items():
        name, origin = chosen.candidate.name, chosen.candidate.origin
        label = f"[{table}] {name}" + (f" ({origin})" if origin != name else "")
        try:
            with naming_plugins(manager):
                manager.register(chosen.plugin, label)
            manager.check_pending()
        except (ValueError, pluggy.PluginValidationError) as error:
            reason = str(error).replace("\n", " ")
            raise UserError(f"{label} is no plugin of this trainer: {reason}") from error
        if any(impl.wrapper and impl.plugin is chosen.plugin for impl in _impls(manager, "step")):
            seams.append(_OuterStepSeam(seams[-1]))
            manager.register(seams[-1], f"core.step-seam.{table}")
    _check_one_answer(manager)
    return manager


class _Calls:
    """The manager's hooks, with two differences: a hook with one answer must give it, and `close`
    reaches every plugin, whatever another raises.
    """

    def __init__(self, manager: pluggy.PluginManager) -> None:
        self._manager = manager

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._manager.hook, name)
        if not call.spec.opts["firstresult"] or name in _MAY_BE_SILENT:
            return call

        def answered(**arguments: Any) -> Any:
            answer = call(**arguments)
            if answer is None:
                asked = [each for each in _impls(self._manager, name) if not is_seam(each)]
                named = " and ".join(each.plugin_name for each in reversed(asked))
                hint = "; does each wrapper return it?" if any(i.wrapper for i in asked) else ""
                raise UserError(f"the hook {name} of {named} returned None{hint}")
            return answer

        return answered

    def evaluate(self, **arguments: Any) -> list[Metrics]:
        answers = self._manager.hook.evaluate(**arguments)
        if not isinstance(answers, list):
            wrappers = [each for each in _impls(self._manager, "evaluate") if each.wrapper]
            named = " and ".join(each.plugin_name for each in wrappers)
            raise UserError(
                f"the hook evaluate, wrapped by {named}, returned {answers!r}; a wrapper returns "
                f"the list of all answers"
            )
        for each in answers:
            if not isinstance(each, Mapping):
                asked = [i.plugin_name for i in reversed(_impls(self._manager, "evaluate"))]
                raise UserError(
                    f"the hook evaluate, asked of {' and '.join(asked)}, returned {each!r}; "
                    f"expected a dict of numbers by name, or None"
                )
        return answers

    def close(self, *, run: Run, error: BaseException | None) -> list[None]:
        failures: list[Exception] = []
        phase = self._manager.hook.phase
        calls = [functools.partial(phase, run=run, name="closing", program=None)]
        plugins = [impl.plugin for impl in reversed(_impls(self._manager, "close"))]
        for plugin in plugins:
            others = [each for each in plugins if each is not plugin]
            alone = self._manager.subset_hook_caller("close", others)
            calls.append(functools.partial(alone, run=run, error=error))
        for call in calls:
            try:
                call()
            except Exception as failure:
                failures.append(failure)
        for each in failures:
            if error is None:
                raise each
            where = "".join(f", {note}" for note in getattr(each, "__notes__", ()))
            error.add_note(f"closing then raised {type(each).__name__}: {each}{where}")
        return []


class _StepSeam:
    """The innermost wrapper of `step`: what the slot answers becomes a Step for every other."""

    made: Any = None

    @hookimpl(wrapper=True, trylast=True)
    def step(self) -> Any:
        from trainer_core.types import Step

        answer = yield
        if answer is not None:
            self.made = answer if isinstance(answer, Step) else Step(answer)
        return self.made


class _OuterStepSeam:
    """Around a plugin that wraps `step`: a plain function keeps the state of what it wraps."""

    made: Any = None

    def __init__(self, within: Any) -> None:
        self._within = within

    @hookimpl(wrapper=True)
    def step(self) -> Any:
        from trainer_core.types import Step

        answer = yield
        if answer is not None:
            is_step = isinstance(answer, Step)
            self.made = answer if is_step else attrs.evolve(self._within.made, apply=answer)
        return self.made


def _impls(manager: pluggy.PluginManager, hook: str) -> list[pluggy.HookImpl]:
    found: list[pluggy.HookImpl] = getattr(manager.hook, hook).get_hookimpls()
    return found


def _check_one_answer(manager: pluggy.PluginManager) -> None:
    for name, caller in vars(manager.hook).items():
        spec = getattr(caller, "spec", None)
        if spec is None or not spec.opts.get("firstresult"):
            continue
        answers = [impl.plugin_name for impl in caller.get_hookimpls() if not impl.wrapper]
        if len(answers) > 1:
            raise UserError(
                f"the hook {name} has one answer in a run, and {' and '.join(answers)} both give "
                f"one; to change another's answer, wrap it: @hookimpl(wrapper=True)"
            )


def _blame(outcome: Any, hook_name: str, hook_impls: Any, kwargs: Any) -> None:
    """Note on an exception which plugin's hook raised it."""
    if outcome.exception is None:
        return
    owners = {
        getattr(inspect.unwrap(impl.function), "__code__", None): impl.plugin_name
        for impl in hook_impls
    }
    trace, culprit = outcome.exception.__traceback__, None
    while trace is not None:
        # The deepest: an exception also passes through the wrappers around the one that raised.
        culprit = owners.get(trace.tb_frame.f_code, culprit)
        trace = trace.tb_next
    if culprit is not None:
        outcome.exception.add_note(f"raised in the hook {hook_name} of {culprit}")
