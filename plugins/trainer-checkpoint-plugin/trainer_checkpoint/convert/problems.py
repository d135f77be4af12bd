"""Everything that stands against a conversion, in one message."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trainer_checkpoint.convert.paths import pattern_of
from trainer_checkpoint.convert.plan import Spec
from trainer_checkpoint.convert.sides import Side
from trainer_checkpoint.folding import Line
from trainer_checkpoint.mismatch import listed
from trainer_core.errors import UserError


class Problems:
    """Collects what is missing, unexpected or different.

    Args:
        source, target: what to call the two sides.
        reasons: lines that may explain it all.
    """

    def __init__(self, source: str, target: str, reasons: Sequence[str]) -> None:
        self._source, self._target, self._reasons = source, target, reasons
        self._missing: dict[str, Line] = {}
        self._unexpected: dict[str, Line] = {}
        self._different: dict[str, Line] = {}
        self._depths: tuple[int, int] | None = None

    def missing(self, path: str, spec: Spec) -> None:
        """Of the target, and nothing fills it."""
        self._missing[path] = Line((path,), (f" {spec}",))

    def unexpected(self, path: str, spec: Spec, why: str = "") -> None:
        """Of the source, and it goes nowhere."""
        self._unexpected[path] = Line((path,), (f" {spec}" + f": {why}" * bool(why),))

    def different(
        self, sources: Sequence[str], spec: Spec, targets: Sequence[str], wanted: Spec, why: str
    ) -> None:
        """They go together, and do not fit."""
        given = f" is {_times(sources)}{spec}, "
        want = f" needs {_times(targets)}{wanted}: {why}"
        names = (pattern_of(sources), pattern_of(targets))
        self._different[targets[0]] = Line(names, (given, want))

    def depth(self, has: int, needs: int) -> None:
        """Stacks of layers do not fit, because these are their numbers."""
        self._depths = (has, needs)

    def check(self, source: Side, target: Side, idle: Sequence[str]) -> None:
        """Raise what was collected.

        Args:
            source, target: what each array is on each side.
            idle: what of the mapping fits nothing.

        Raises:
            UserError: there is anything.
        """
        kinds = (
            ("missing", "the run needs it, nothing fills it", self._missing),
            ("unexpected", "the checkpoint has it, it goes nowhere", self._unexpected),
            ("different", "of another shape or dtype", self._different),
        )
        of_optimizer = source.optimizer.keys() | target.optimizer.keys()
        owners = source.owners | target.owners
        lines = [line for each in kinds for line in listed(*each, owners, of_optimizer)]
        if not lines:
            return
        problems = self._missing | self._unexpected | self._different
        if problems.keys() <= of_optimizer:
            has = _kinds(source.optimizer, self._unexpected) or "nothing more"
            needs = _kinds(target.optimizer, self._missing) or "nothing more"
            lines.append(
                f"Only the optimizer's state does not fit: it has {has}, and the run needs "
                f"{needs}. --fresh-optimizer begins with a new one."
            )
        if self._depths:
            lines.append(_other_depth(*self._depths))
        lines.append(
            "Give the config of the same model, or a mapping (--mapping FILE.toml): it renames, "
            "`drop`s what only the checkpoint has, and lists as `fresh` what only the run has."
        )
        raise UserError(
            f"{self._source} does not become {self._target}; nothing was written:\n"
            + "\n".join([*self._reasons, *idle, *lines])
        )


def _other_depth(has: int, needs: int) -> str:
    return (
        f"The checkpoint has {has} layers and the run stacks {needs}; single layers of a stack "
        f"neither begin anew nor are dropped. Those that are not stacked may (in our decoders, "
        f"model.scan=false): convert to {has} of those, from there to {needs}, and from there to "
        f"a stack: docs/resume.md."
    )


def _kinds(kinds: Mapping[str, str], problems: Mapping[str, Line]) -> str:
    return ", ".join(dict.fromkeys(kind for path, kind in kinds.items() if path in problems))


def _times(paths: Sequence[str]) -> str:
    return f"{len(paths)} x " if len(paths) > 1 else ""
