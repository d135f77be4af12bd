"""`--topology`: which devices a plan is for, and how JAX gets them where they are not there."""

from __future__ import annotations

import importlib.util
import math
import os
import re
from collections.abc import Sequence
from itertools import combinations_with_replacement
from typing import TYPE_CHECKING, Any

import attrs

from trainer_core.errors import UserError
from trainer_core.plan.chips import CHIPS, Chip
from trainer_core.suggest import did_you_mean

if TYPE_CHECKING:
    import jax

_EXAMPLES = "v5e:4x4, v5p:4x4x4, gpu:h100x16, cpu:8"
_TPUS = tuple(name for name, chip in CHIPS.items() if chip.shape)
_GPUS = tuple(name for name, chip in CHIPS.items() if not chip.shape)
_FLAT = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
_SMALL = ((1, 1, 1), (2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))


@attrs.frozen
class Topology:
    """Devices by name.

    Attributes:
        text: as it was given.
        platform: `tpu`, `gpu` or `cpu`.
        count: how many devices JAX sees.
        chip: what they can do; None for a CPU.
    """

    text: str
    platform: str
    count: int
    chip: Chip | None


def parse_topology(text: str) -> Topology:
    """Return what `v5e:4x4`, `gpu:h100x16` or `cpu:8` names.

    Raises:
        UserError: there is no such chip or no such slice; what there is is named.
    """
    name, colon, size = text.partition(":")
    if not colon and name in _TPUS:
        raise _wrong(text, f"it needs a shape, such as {_shape_of(CHIPS[name])}")
    if name == "cpu":
        return Topology(text, "cpu", _count(text, size), None)
    if name == "gpu":
        return _gpu(text, size)
    if name in _TPUS:
        return _tpu(text, CHIPS[name], size)
    known = [*_TPUS, "gpu", "cpu"]
    hint = f" (did you mean 'gpu:{name}x8'?)" if name in _GPUS else did_you_mean(name, known)
    raise _wrong(
        text,
        f"there is no chip {name!r}{hint}; there are {', '.join(_TPUS)}, "
        f"{', '.join(f'gpu:{each}' for each in _GPUS)} and cpu; such as {_EXAMPLES}",
    )


def prepare(topology: Topology) -> None:
    """Set what jax reads while it is imported, and what can be set until its backends start.

    Raises:
        UserError: what the topology needs is not installed; or too late, for a CPU.
    """
    if topology.platform != "cpu":
        _check_installed(topology)
    os.environ["JAX_PLATFORMS"] = "cpu"  # the accelerators of this machine stay alone
    if topology.platform == "tpu":
        # libtpu asks the metadata server of a TPU VM for these, and locks itself to one process.
        os.environ |= {
            "TPU_SKIP_MDS_QUERY": "1",
            "TPU_WORKER_HOSTNAMES": "localhost",
            "TPU_ACCELERATOR_TYPE": "v5litepod-4",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        }
    import jax

    if topology.platform == "cpu":
        try:
            jax.config.update("jax_num_cpu_devices", topology.count)
        except RuntimeError:  # they are there already, in a program that uses JAX
            return
    else:
        # What was compiled without a client cannot be read back: only a warning would come of it.
        jax.config.update("jax_enable_compilation_cache", False)


def devices_of(topology: Topology | None) -> Sequence[jax.Device]:
    """Return the devices, after `prepare`; without a topology those that are here.

    Raises:
        UserError: the compiler knows no such topology.
    """
    import jax
    from jax.experimental import topologies

    if topology is None:
        return jax.devices()
    if topology.platform == "cpu":
        here = jax.devices("cpu")
        if len(here) < topology.count:
            raise UserError(
                f"--topology {topology.text}: JAX runs already, with {len(here)} CPU devices; "
                f"set XLA_FLAGS=--xla_force_host_platform_device_count={topology.count} before"
            )
        return here[: topology.count]
    try:
        if topology.platform == "tpu":
            found = topologies.get_topology_desc(
                platform="tpu", topology_name=topology.text, **_built(topology)
            )
        else:
            from trainer_core.plan.gpus import target_config

            assert topology.chip is not None
            hosts, each = -(-topology.count // 8), min(topology.count, 8)
            found = topologies.get_topology_desc(
                platform="cuda",
                topology_name="",
                target_config=target_config(topology.chip),
                topology=f"1x{hosts}x{each}",
            )
    except Exception as error:
        raise _wrong(topology.text, f"the compiler refuses it: {error}") from error
    return tuple(found.devices)


def _built(topology: Topology) -> dict[str, Any]:
    """How the chips of a slice are put together, where libtpu's default is something else."""
    options: dict[str, Any] = {}
    if topology.text.startswith("v4:"):
        options["chip_config_name"] = "megacore"  # one device a chip, as on the real ones
    if topology.count == (topology.chip.per_chip if topology.chip else 1):
        options["chips_per_host_bounds"] = (1, 1, 1)
    return options


def _count(text: str, size: str) -> int:
    if not size.isdigit() or int(size) < 1:
        raise _wrong(text, "it needs a number of devices, such as cpu:8")
    return int(size)


def _gpu(text: str, size: str) -> Topology:
    match = re.fullmatch(r"([a-z]+\d+)(?:x(\d+))?", size)
    name, count = (match[1], int(match[2] or 1)) if match else (size, 1)
    if name not in _GPUS:
        raise _wrong(
            text,
            f"there is no GPU {name!r}{did_you_mean(name, _GPUS)}; there are {', '.join(_GPUS)}, "
            f"such as gpu:h100x16",
        )
    if count < 1 or (count > 8 and count % 8):
        near = -(-max(count, 1) // 8) * 8
        raise _wrong(
            text,
            f"a host has 8 of them: up to 8, or a multiple of 8 (did you mean gpu:{name}x{near}?)",
        )
    return Topology(text, "gpu", count, CHIPS[name])


def _tpu(text: str, chip: Chip, size: str) -> Topology:
    if not re.fullmatch(r"\d+(x\d+)*", size):
        raise _wrong(text, f"it needs a shape, such as {_shape_of(chip)}")
    shape = tuple(map(int, size.split("x")))
    if not _exists(chip, shape):
        raise _wrong(
            text, f"there is no such slice of {chip.title}{_near(chip, shape)}; {_slices(chip)}"
        )
    return Topology(text, "tpu", math.prod(shape) * chip.per_chip, chip)


def _exists(chip: Chip, shape: tuple[int, ...]) -> bool:
    if len(shape) != chip.shape or math.prod(shape) > chip.pod:
        return False
    if chip.shape == 2:
        return shape in _FLAT or shape[::-1] in _FLAT
    return shape in _SMALL or all(each and each % 4 == 0 for each in shape)


def _near(chip: Chip, shape: tuple[int, ...]) -> str:
    """A slice of as many chips, or of the next number."""
    known = _FLAT if chip.shape == 2 else (*_SMALL, *_cubes(chip))
    wanted = math.prod(shape)
    found = min(known, key=lambda each: (abs(math.prod(each) - wanted), max(each)))
    return f" (did you mean {'x'.join(map(str, found))}?)"


def _cubes(chip: Chip) -> list[tuple[int, ...]]:
    sizes = combinations_with_replacement(range(4, 29, 4), 3)
    return [each for each in sizes if math.prod(each) <= chip.pod]


def _slices(chip: Chip) -> str:
    if chip.shape == 2:
        return f"there are {', '.join('x'.join(map(str, each)) for each in _FLAT)}"
    return (
        f"there are {', '.join('x'.join(map(str, each)) for each in _SMALL)}, and three multiples "
        f"of 4, up to {chip.pod:,} chips"
    )


def _shape_of(chip: Chip) -> str:
    return "4x4" if chip.shape == 2 else "4x4x4"


def _wrong(text: str, message: str) -> UserError:
    return UserError(f"--topology {text}: {message}")


def _check_installed(topology: Topology) -> None:
    needs = {
        "tpu": ("libtpu", "pip install 'trainer-core[plan-tpu]'", "TPUs"),
        "gpu": ("jax_cuda12_plugin", "pip install 'jax[cuda12]'", "GPUs"),
    }
    module, command, what = needs[topology.platform]
    alternatives = (module, "jax_cuda13_plugin") if topology.platform == "gpu" else (module,)
    if not any(importlib.util.find_spec(each) for each in alternatives):
        raise UserError(
            f"--topology {topology.text}: to compile for {what} that are not there, {module} has "
            f"to be installed: {command}"
        )
