"""The mesh of a config: all devices, by mesh axis."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from trainer_core.errors import UserError
from trainer_core.suggest import did_you_mean

Sizes = Mapping[str, int]
_MESH, _DCN = "shard.mesh", "shard.dcn"


def make_mesh(
    sizes: Sizes, devices: Sequence[jax.Device], dcn: Sizes = MappingProxyType({})
) -> Mesh:
    """Return the mesh of a config.

    Its axes are spelled out as Auto: `jax.make_mesh` now makes Explicit ones, under which
    ordinary Flax models raise. Neighbours in it are neighbours in the network, where the
    platform says who is one.

    Args:
        sizes: devices along each mesh axis, in order; one may be -1, for all that remain.
        devices: all devices of all processes.
        dcn: of these sizes, how many lie in different slices, which only the data center's
            network connects; where devices know no slices, in different processes.

    Raises:
        UserError: the sizes do not fit the devices.
    """
    shape = _shape(sizes, devices)
    across = _across(dcn, shape, devices)
    if not across:
        placed = mesh_utils.create_device_mesh(
            tuple(shape.values()), devices, allow_split_physical_axes=True
        )
    else:
        placed = mesh_utils.create_hybrid_device_mesh(
            [size // across.get(name, 1) for name, size in shape.items()],
            [across.get(name, 1) for name in shape],
            devices,
            process_is_granule=_slices(devices) == 1,
            allow_split_physical_axes=True,
        )
    return Mesh(placed, tuple(shape), axis_types=(AxisType.Auto,) * len(shape))


def written(sizes: Sizes) -> str:
    """Return the sizes of mesh axes as a recipe has them: `{data = 2, fsdp = 4}`."""
    return "{" + ", ".join(f"{name} = {size}" for name, size in sizes.items()) + "}"


def must_run_in_turn(devices: Collection[jax.Device]) -> bool:
    """Whether two programs on these devices may not be in flight at once.

    On CPUs their collectives run side by side, and can wait for each other for ever: several
    devices of one process for threads, several processes for the same order.
    """
    return len(devices) > 1 and next(iter(devices)).platform == "cpu"


def _shape(sizes: Sizes, devices: Sequence[jax.Device]) -> dict[str, int]:
    where = f"[shard] mesh = {written(sizes)}"
    free = [name for name, size in sizes.items() if size == -1]
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if len(free) > 1:
        raise UserError(
            f"{where}: only one axis may be -1, not {' and '.join(free)}; give the others a size, "
            f"such as {free[0]} = 1",
            _MESH,
        )
    if any(size < 1 and size != -1 for size in sizes.values()):
        raise UserError(
            f"{where}: each axis needs at least 1 device, or -1 for all that remain", _MESH
        )
    if len(devices) % fixed or (not free and fixed != len(devices)):
        raise UserError(
            f"{where} needs {'a multiple of ' if free else ''}{fixed} devices, "
            f"and there are {len(devices)} ({devices[0].platform}); give other sizes, such as "
            f"'{_MESH}={written(_fitting(sizes, len(devices)))}'",
            _MESH,
        )
    return {name: len(devices) // fixed if size == -1 else size for name, size in sizes.items()}


def _fitting(sizes: Sizes, devices: int) -> Sizes:
    """The sizes of a mesh, changed to fit these devices: the largest takes all that remain."""
    largest = max(sizes, key=lambda name: (sizes[name] == -1, sizes[name]))
    others = math.prod(size for name, size in sizes.items() if name != largest)
    keep = devices % others == 0
    return {name: -1 if name == largest else size if keep else 1 for name, size in sizes.items()}


def _across(dcn: Sizes, shape: Sizes, devices: Sequence[jax.Device]) -> dict[str, int]:
    """The axes that cross slices, with how many of these; empty where there is one slice."""
    where = f"[shard] dcn = {written(dcn)}"
    for name, size in dcn.items():
        if name not in shape:
            raise UserError(
                f"{where}: the mesh has no axis {name!r}{did_you_mean(name, shape)}; it has: "
                f"{', '.join(shape)}",
                _DCN,
            )
        if size < 1 or shape[name] % size:
            raise UserError(
                f"{where}: {size} must divide the {shape[name]} devices of its axis {name!r}",
                _DCN,
                _MESH,
            )
    slices = _slices(devices)
    places, what = (slices, "slices") if slices > 1 else (_processes(devices), "processes")
    across = {name: size for name, size in dcn.items() if size > 1}
    if across and math.prod(across.values()) != places:
        raise UserError(
            f"{where} needs {math.prod(across.values())} {what}, not {places}; set shard.dcn={{}}, "
            f"or give such devices (`trainer plan` takes --topology 2xv5e:4x4)",
            _DCN,
        )
    if slices > 1 and not across:
        fitting = [name for name, size in shape.items() if size % slices == 0]
        raise UserError(
            f"the devices are of {slices} slices, which only the data center's network connects; "
            f"say which mesh axis crosses it: "
            f"shard.dcn={{{fitting[0] if fitting else next(iter(shape))}={slices}}}",
            _DCN,
            _MESH,
        )
    return across


def _slices(devices: Sequence[jax.Device]) -> int:
    # JAX gives GPUs a slice for each host, whose network is no reason to refuse a mesh.
    if devices[0].platform != "tpu":
        return 1
    return len({getattr(each, "slice_index", 0) for each in devices})


def _processes(devices: Sequence[jax.Device]) -> int:
    return len({each.process_index for each in devices})
