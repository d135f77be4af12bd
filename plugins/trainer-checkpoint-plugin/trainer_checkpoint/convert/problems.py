"""Everything that stands against a conversion, in one message."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trainer_checkpoint.convert.paths import pattern_of
from trainer_checkpoint.convert.plan import Spec
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
        self._missing: dict[str, str] = {}
        self._unexpected: dict[str, str] = {}
        self._different: dict[str, str] = {}

    def missing(self, path: str, spec: Spec) -> None:
        """Of the target, and nothing fills it."""
        self._missing[path] = f"{path} {spec}"

    def unexpected(self, path: str, spec: Spec, why: str = "") -> None:
        """Of the source, and it goes nowhere."""
        self._unexpected[path] = f"{path} {spec}" + f": {why}" * bool(why)

    def different(
        self, sources: Sequence[str], spec: Spec, targets: Sequence[str], wanted: Spec, why: str
    ) -> None:
        """They go together, and do not fit."""
        given = f"{pattern_of(sources)} is {_times(sources)}{spec}"
        want = f"{pattern_of(targets)} needs {_times(targets)}{wanted}"
        self._different[targets[0]] = f"{given}, {want}: {why}"

    def check(
        self, source: Mapping[str, str], target: Mapping[str, str], idle: Sequence[str]
    ) -> None:
        """Raise what was collected.

        Args:
            idle: what of the mapping fits nothing.
            source, target: what belongs to the optimizer on each side: path to kind (`mu`).

        Raises:
            UserError: there is anything.
        """
        kinds = (
            ("missing", "the run needs it, nothing fills it", self._missing),
            ("unexpected", "the checkpoint has it, it goes nowhere", self._unexpected),
            ("different", "of another shape or dtype", self._different),
        )
        of_optimizer = source.keys() | target.keys()
        lines = [line for each in kinds for line in listed(*each, of_optimizer)]
        if not lines:
            return
        problems = self._missing | self._unexpected | self._different
        if problems.keys() <= of_optimizer:
            has = _kinds(source, self._unexpected) or "nothing more"
            needs = _kinds(target, self._missing) or "nothing more"
            lines.append(
                f"Only the optimizer's state does not fit: it has {has}, and the run needs "
                f"{needs}. --fresh-optimizer begins with a new one."
            )
        lines.append(
            "Give the config of the same model, or a mapping (--mapping FILE.toml): it renames, "
            "`drop`s what only the checkpoint has, and lists as `fresh` what only the run has."
        )
        raise UserError(
            f"{self._source} does not become {self._target}; nothing was written:\n"
            + "\n".join([*self._reasons, *idle, *lines])
        )


def _kinds(kinds: Mapping[str, str], problems: Mapping[str, str]) -> str:
    return ", ".join(dict.fromkeys(kind for path, kind in kinds.items() if path in problems))


def _times(paths: Sequence[str]) -> str:
    return f"{len(paths)} x " if len(paths) > 1 else ""
