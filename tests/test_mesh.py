"""Where `make_mesh` puts the devices of several slices, which are not there: JAX reads these."""

from __future__ import annotations

import itertools
from typing import Any

import attrs
import numpy as np
import pytest
from programs import build, recipe

from trainer_core.errors import UserError
from trainer_core.mesh import make_mesh

WIDE, LONG = 2, 4  # chips of a slice along its two rings


@attrs.frozen
class Chip:
    """What JAX reads of a TPU."""

    id: int
    coords: tuple[int, int, int]
    slice_index: int
    process_index: int
    core_on_chip: int = 0
    platform: str = "tpu"
    device_kind: str = "TPU v4"


def chips(slices: int) -> Any:
    """Return chips in the order of their ids, which no axis of a mesh could simply follow."""
    places = [(x, y, 0) for y in range(LONG) for x in range(WIDE)]
    return [
        Chip(id, places[id % len(places)], id // len(places), id // 4)
        for id in range(slices * len(places))
    ]


def distance(one: Chip, other: Chip) -> int:
    """The links between two chips of a slice; both of its directions are rings."""
    x, y = (abs(a - b) for a, b in zip(one.coords[:2], other.coords[:2], strict=True))
    return min(x, WIDE - x) + min(y, LONG - y)


MESHES = {
    "first": ({"data": 2, "fsdp": WIDE, "tensor": LONG}, {"data": 2}),
    "last": ({"tensor": LONG, "fsdp": WIDE, "data": 2}, {"data": 2}),
    "in the middle": ({"fsdp": WIDE, "data": 4, "tensor": LONG}, {"data": 4}),
    "a part of an axis": ({"data": 2 * WIDE, "tensor": LONG}, {"data": 2}),
    "two axes": ({"data": 2, "fsdp": 2 * WIDE, "tensor": LONG}, {"data": 2, "fsdp": 2}),
}


@pytest.mark.parametrize("mesh", MESHES)
def test_only_the_axes_that_are_named_cross_slices_and_neighbours_are_linked(mesh: str) -> None:
    sizes, dcn = MESHES[mesh]
    placed = make_mesh(sizes, chips(int(np.prod(list(dcn.values())))), dcn).devices
    assert placed.shape == tuple(sizes.values())
    for axis, (name, size) in enumerate(sizes.items()):
        across = dcn.get(name, 1)
        for line in np.moveaxis(placed, axis, -1).reshape(-1, size):
            # The axis is as many stretches as it crosses slices, each within one of them.
            stretches = line.reshape(across, size // across)
            assert [len({chip.slice_index for chip in each}) for each in stretches] == [1] * across
            assert len({each[0].slice_index for each in stretches}) == across
            for each in stretches:
                steps = [distance(a, b) for a, b in itertools.pairwise(each)]
                assert steps == [1] * (len(each) - 1)


def test_slices_that_no_axis_crosses_are_an_error_that_names_one() -> None:
    with pytest.raises(UserError, match=r"of 2 slices, .* say which .*: shard.dcn=\{data=2\}"):
        make_mesh({"data": 2, "fsdp": 8}, chips(2))


def test_a_dcn_of_another_number_of_slices_is_an_error() -> None:
    with pytest.raises(UserError, match=r"dcn = \{data = 2\} needs 2 slices, not 4"):
        make_mesh({"data": 4, "fsdp": 8}, chips(4), {"data": 2})


def test_the_rows_of_a_process_are_found_once_and_not_at_each_step() -> None:
    run = build(recipe()).run
    assert run.rows is run.rows
