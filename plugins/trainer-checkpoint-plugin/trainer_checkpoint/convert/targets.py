"""The arrays that a conversion fills, by name, and what goes to one in whichever form it is."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from functools import cached_property

import attrs

from trainer_checkpoint.convert.mapping import Rule
from trainer_checkpoint.convert.paths import spelled, without_number

_PLAIN = Rule(re.compile(""))


@attrs.frozen
class Link:
    """Names that go together.

    Attributes:
        sources: layer by layer, and in each layer the parts in order.
        targets: likewise.
        rule: by which; its operations belong to one layer.
        stacked: the number of layers that each target stacks; 0: none.
        unstacked: the number of layers that each source gives; 0: none.
        axis: of the layers.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    rule: Rule = _PLAIN
    stacked: int = 0
    unstacked: int = 0
    axis: int = 0


@attrs.frozen(slots=False)
class Targets:
    """The names of the model's arrays on the other side.

    Attributes:
        axes: for each name, the axis that stacks equal layers; None: there is none.
        buffers: which of them are no parameters.
    """

    axes: Mapping[str, int | None]
    buffers: Collection[str] = ()

    def of_buffers(self) -> Targets:
        return Targets({name: self.axes[name] for name in self.buffers})

    def find(self, name: str, source: str) -> Link | tuple[str, int] | None:
        """Return what an array is linked to by its name alone.

        Args:
            name: as it is looked for here.
            source: as it is called in the checkpoint.

        Returns:
            The link; or, for one layer of a stacked target, the target and the layer's number.
        """
        if name in self.axes:
            return Link((source,), (name,))
        if spelled(name) in self._spellings:
            return Link((source,), (self._spellings[spelled(name)],))
        for form, number in without_number(name):
            if self.axes.get(form) is not None:
                return form, number
        layers = sorted(self._numbered.get(name, []))
        into = tuple(target for _, target in layers)
        return Link((source,), into, unstacked=len(into)) if into else None

    @cached_property
    def _spellings(self) -> dict[str, str]:
        return {spelled(name): name for name in self.axes}

    @cached_property
    def _numbered(self) -> dict[str, list[tuple[int, str]]]:
        """For each name without its number, the numbered names."""
        found: dict[str, list[tuple[int, str]]] = {}
        for name in self.axes:
            for form, number in without_number(name):
                found.setdefault(form, []).append((number, name))
        return found
