"""Which collectives of a compiled program XLA for CPUs may run in any order."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from trainer_core.plan.hlo import Instruction, computations

COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")


def unordered(text: str) -> list[tuple[str, str]]:
    """Return each loop with collectives inside, and a collective that it may run beside.

    XLA for CPUs runs the collectives of one computation in the order of its text. What a loop
    has inside is ordered by data alone: two that need nothing of each other may come in another
    order in each process, and then wait for each other for ever.
    """
    every = computations(text)
    talking = {name for name, lines in every.items() if any(map(_is_collective, lines))}
    while more := {
        name
        for name, lines in every.items()
        if name not in talking and any(talking & {*_inside(each)} for each in lines)
    }:
        talking |= more
    found = []
    for lines in every.values():
        by_name = {each.name: each for each in lines}
        loops = [each for each in lines if talking & {*_inside(each)}]
        talk = [*loops, *(each for each in lines if _is_collective(each))] if loops else []
        needed = {each.name: _needed(each, by_name) for each in talk}
        found += [
            (loop.name, other.name)
            for loop, other in itertools.product(loops, talk)
            if other != loop
            and other.name not in needed[loop.name]
            and loop.name not in needed[other.name]
        ]
    return found


def _is_collective(instruction: Instruction) -> bool:
    return instruction.kind.removesuffix("-start") in COLLECTIVES


def _inside(instruction: Instruction) -> Sequence[str]:
    return () if _is_collective(instruction) else [*instruction.called, *instruction.branches]


def _needed(instruction: Instruction, by_name: Mapping[str, Instruction]) -> set[str]:
    """All that has to be there before it, in its computation."""
    found: set[str] = set()
    waiting = [instruction]
    while waiting:
        for name in waiting.pop().operands:
            if name in by_name and name not in found:
                found.add(name)
                waiting.append(by_name[name])
    return found
