"""Make the plan of a conversion, or say everything that stands against it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import attrs

from trainer_checkpoint.convert.links import Links, link
from trainer_checkpoint.convert.mapping import Mapping as Rules
from trainer_checkpoint.convert.operations import Operation
from trainer_checkpoint.convert.plan import Entry, Plan, Spec
from trainer_checkpoint.convert.problems import Problems
from trainer_checkpoint.convert.shaping import agreement, operations
from trainer_checkpoint.convert.sides import Side
from trainer_checkpoint.convert.targets import Link, Targets
from trainer_checkpoint.mismatch import changed_config

_COUNT = "count"  # as every state of optax calls it


@attrs.frozen
class Described:
    """One side of a conversion, without its values.

    Attributes:
        name: what to call it in messages.
        specs: of each array, by path.
        side: what each of them is.
        axes: for each name of the model, the axis that stacks layers; only the target needs it.
        config: of the run; None: it is none of ours.
    """

    name: str
    specs: Mapping[str, Spec]
    side: Side
    axes: Mapping[str, int | None] = attrs.field(factory=dict)
    config: Mapping[str, Any] | None = None


def make_plan(source: Described, target: Described, rules: Rules, fresh_optimizer: bool) -> Plan:
    """Return what becomes of every array.

    Args:
        source, target: the two sides.
        rules: the mapping.
        fresh_optimizer: leave the optimizer's state out; the run begins with a new one.

    Raises:
        UserError: with everything that is missing, unexpected or of another shape or dtype.
    """
    planner = _Planner(source, target, rules)
    planner.drop_by_path()
    targets = Targets(target.axes, target.side.buffers)
    links = link(source.side.model, targets, rules.rules, source.side.short)
    planner.take_model(links)
    planner.check_used(links)
    if fresh_optimizer:
        planner.ignored += planner.left(source.side.optimizer)
        planner.fresh += target.side.optimizer
    else:
        planner.take_slots(links)
        planner.take_others()
        planner.count_steps()
    planner.take_together(source.side.steps, target.side.steps)
    if not source.side.steps:
        planner.fresh += target.side.steps  # the user, or the folder's name, says it
    planner.begin_anew()
    planner.ignored += source.side.run_only
    planner.fresh += target.side.run_only
    return planner.finished()


class _Planner:
    def __init__(self, source: Described, target: Described, rules: Rules) -> None:
        self.source, self.target, self.rules = source, target, rules
        self.entries: list[Entry] = []
        self.dropped: list[str] = []
        self.ignored: list[str] = []
        self.fresh: list[str] = []
        self.begun: list[str] = []
        self.counted: list[str] = []
        self.idle: list[str] = []
        old, new = source.config, target.config
        reasons = [] if old is None or new is None else changed_config(old, new)
        self.problems = Problems(source.name, target.name, reasons)
        self._touched: set[str] = set()  # of the source: nothing more is to be said of these
        self._filled: set[str] = set()

    def drop_by_path(self) -> None:
        """What the optimizer keeps is dropped by its whole path."""
        dropping = [rule.pattern for rule in self.rules.rules if rule.drop]
        for path in self.source.side.optimizer:
            if any(pattern.fullmatch(path) for pattern in dropping):
                self._drop(path)

    def check_used(self, links: Links) -> None:
        """A rule with a misspelled pattern is as if it were not there; it is said, not refused:
        one mapping may serve several forms of a model."""
        for index, rule in enumerate(self.rules.rules):
            drops = rule.drop and any(map(rule.pattern.fullmatch, self.source.side.optimizer))
            if index not in links.used and not drops:
                self.idle.append(f"{rule.place}, from = '{rule.pattern.pattern}': it fits nothing")
        for pattern in self.rules.fresh:
            if not any(map(pattern.fullmatch, self.target.side.model)):
                self.idle.append(f"fresh = ['{pattern.pattern}']: the run has nothing of this name")

    def take_model(self, links: Links) -> None:
        ours, theirs = self.source.side.model, self.target.side.model
        for name in links.dropped:
            self._drop(ours[name])
        for name, why in links.wrong:
            self._touched.add(ours[name])
            self.problems.unexpected(ours[name], self.source.specs[ours[name]], why)
        for each in links.found:
            sources = [ours[name] for name in each.sources]
            targets = [theirs[name] for name in each.targets]
            self._add(sources, targets, self._by_link(each))
            self._compare_depths(each, sources[0])

    def _compare_depths(self, each: Link, source: str) -> None:
        name = each.targets[0]
        axis, wanted = self.target.axes.get(name), self._wanted(name)
        given = self.source.specs[source].shape
        if axis is None or each.rule.reshape or len(given) + bool(each.stacked) != len(wanted):
            return
        has = each.stacked or given[axis]
        if has != wanted[axis]:
            self.problems.depth(has, wanted[axis])

    def _wanted(self, name: str) -> tuple[int, ...]:
        return self.target.specs[self.target.side.model[name]].shape

    def take_slots(self, links: Links) -> None:
        ours, theirs = self.source.side.slots, self.target.side.slots
        for slot, of_source in ours.items():
            for name in links.dropped:
                if name in of_source:
                    self._drop(of_source[name])
            for each in links.found:
                sources = self.left(of_source[n] for n in each.sources if n in of_source)
                targets = [theirs[slot][n] for n in each.targets if n in theirs.get(slot, {})]
                if len(sources) == len(each.sources) and len(targets) == len(each.targets):
                    self._add(sources, targets, self._in_slot(each))

    def take_others(self) -> None:
        for name, paths in self.source.side.others.items():
            self.take_together(self.left(paths), self.target.side.others.get(name, []))

    def count_steps(self) -> None:
        """An optimizer with a constant rate counts nothing, and the schedule of a run does."""
        if _COUNT not in self.source.side.others:
            self.counted += self.target.side.others.get(_COUNT, [])

    def begin_anew(self) -> None:
        """With what the optimizer keeps for it."""
        side = self.target.side
        for name, path in side.model.items():
            if path not in self._filled and any(p.fullmatch(name) for p in self.rules.fresh):
                slots = (slot[name] for slot in side.slots.values() if name in slot)
                self.begun += [path, *(each for each in slots if each not in self.fresh)]

    def take_together(self, sources: Sequence[str], targets: Sequence[str]) -> None:
        """Pair them in order; where their numbers differ, all of the sources must agree."""
        if not sources or not targets:
            return
        if len(sources) == len(targets):
            for pair in zip(sources, targets, strict=True):
                self._add([pair[0]], [pair[1]], self._agreement)
        else:
            self._add(list(sources), list(targets), self._agreement)

    def left(self, paths: Iterable[str]) -> list[str]:
        return [path for path in paths if path not in self._touched]

    def finished(self) -> Plan:
        used = self._touched | set(self.ignored)
        given = self._filled.union(self.fresh, self.begun, self.counted)
        for path in self.source.specs.keys() - used:
            self.problems.unexpected(path, self.source.specs[path])
        for path in self.target.specs.keys() - given:
            self.problems.missing(path, self.target.specs[path])
        source, target = self.source.side, self.target.side
        self.problems.check(source, target, self.idle)
        return Plan(
            entries=tuple(self.entries),
            dropped=tuple(self.dropped),
            ignored=tuple(self.ignored),
            fresh=tuple(self.fresh),
            begun=tuple(self.begun),
            counted=tuple(self.counted),
            idle=tuple(self.idle),
            owners=source.owners | target.owners,
        )

    def _drop(self, path: str) -> None:
        self._touched.add(path)
        self.dropped.append(path)

    def _add(self, sources: list[str], targets: list[str], ask: Ask) -> None:
        self._touched.update(sources)
        self._filled.update(targets)
        specs = [self.source.specs[path] for path in sources]
        wanted = [self.target.specs[path] for path in targets]
        try:
            made = ask(specs, wanted)
        except ValueError as error:
            self.problems.different(sources, specs[0], targets, wanted[0], str(error))
        else:
            self.entries.append(Entry(tuple(sources), tuple(targets), made))

    def _by_link(self, each: Link) -> Ask:
        return lambda specs, wanted: operations(each, specs, wanted, self.rules.cast)

    def _in_slot(self, each: Link) -> Ask:
        """As the parameters themselves; an optimizer that keeps less of them (adafactor) has
        placeholders that are equal in every layer.
        """

        def ask(specs: list[Spec], wanted: list[Spec]) -> tuple[Operation, ...]:
            try:
                return operations(each, specs, wanted, self.rules.cast)
            except ValueError:
                if {spec.shape for spec in [*specs, *wanted]} != {(1,)}:
                    raise
            return self._agreement(specs, wanted)

        return ask

    def _agreement(self, specs: list[Spec], wanted: list[Spec]) -> tuple[Operation, ...]:
        return (agreement(specs, wanted, self.rules.cast),)


Ask = Callable[[list[Spec], list[Spec]], tuple[Operation, ...]]
