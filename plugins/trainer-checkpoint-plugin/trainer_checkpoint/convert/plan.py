"""A plan: which arrays become which, and how; pure data, made on shapes alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from trainer_checkpoint.convert.operations import Operation
from trainer_core.errors import UserError


@attrs.frozen
class Spec:
    """Shape and dtype of one array."""

    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


@attrs.frozen
class Entry:
    """Arrays that go together: what the sources become, by these operations in order."""

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    operations: tuple[Operation, ...] = ()

    def inverse(self) -> Entry:
        undone = tuple(each.inverse() for each in reversed(self.operations))
        return Entry(self.targets, self.sources, undone)


@attrs.frozen
class Plan:
    """All of a conversion.

    Attributes:
        entries: what is taken over.
        dropped: source paths that a rule drops.
        ignored: source paths that are not taken by the nature of things: the key of a run, an
            optimizer that is to begin anew.
        fresh: target paths to which the run gives first values, by the nature of things.
        begun: likewise, because the mapping says so.
        counted: target paths of counters that get the number of steps: the source has none.
        absent: target paths that are not written: on the way here they were left out.
        idle: what of the mapping fits nothing, in words.
        owners: of what the optimizer keeps for a parameter, on either side: the parameter's path,
            and the kind, such as `mu`.
    """

    entries: tuple[Entry, ...]
    dropped: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    fresh: tuple[str, ...] = ()
    begun: tuple[str, ...] = ()
    counted: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    idle: tuple[str, ...] = ()
    owners: Mapping[str, tuple[str, str]] = attrs.field(factory=dict)

    def inverse(self) -> Plan:
        """Return the way back: what was left out cannot come back, what began anew is left."""
        back = tuple(entry.inverse() for entry in self.entries)
        began = self.fresh + self.begun + self.counted
        return Plan(back, ignored=began, absent=self.dropped + self.ignored)

    def carry_out(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return the target arrays by path.

        Args:
            arrays: every source array, by path.

        Raises:
            UserError: arrays that must agree do not.
        """
        made: dict[str, NDArray[Any]] = {}
        for entry in self.entries:
            values = [np.asarray(arrays[path]) for path in entry.sources]
            try:
                for operation in entry.operations:
                    values = operation.apply(values)
            except ValueError as error:
                listed = ", ".join(entry.sources)
                raise UserError(f"{listed} cannot become {entry.targets[0]}: {error}") from error
            made.update(zip(entry.targets, values, strict=True))
        return made
