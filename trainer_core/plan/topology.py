"""`--topology`: which devices a plan is for. Nothing here imports jax."""

from __future__ import annotations

import math
import re
from itertools import combinations_with_replacement

import attrs

from trainer_core.errors import UserError
from trainer_core.plan.chips import CHIPS, Chip
from trainer_core.suggest import did_you_mean

_EXAMPLES = "v5e:4x4, 2xv5e:4x4 (two slices), v5p:4x4x4, gpu:h100x16, cpu:8"
_TPUS = tuple(name for name, chip in CHIPS.items() if chip.shape)
_GPUS = tuple(name for name, chip in CHIPS.items() if not chip.shape)
_MOST_CPUS = 4096  # to simulate these takes seconds; 100,000 took all memory of a machine
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
        slices: of a TPU: equal ones, which only the data center's network connects.
    """

    text: str
    platform: str
    count: int
    chip: Chip | None
    slices: int = 1

    @property
    def slice_name(self) -> str:
        """Of a TPU: one of its slices, such as `v5e:4x4`."""
        return re.sub(r"^\d+x", "", self.text)


def parse_topology(text: str) -> Topology:
    """Return what `v5e:4x4`, `2xv5e:4x4`, `gpu:h100x16` or `cpu:8` names.

    Raises:
        UserError: there is no such chip or no such slice; what there is is named.
    """
    several = re.match(r"(\d+)x(?=[a-z])", text)
    name, colon, size = text.removeprefix(several[0] if several else "").partition(":")
    if several and name in ("cpu", "gpu"):
        raise wrong(text, f"only TPUs come in slices, such as {several[0]}v5e:4x4")
    if not colon and name in _TPUS:
        raise wrong(text, f"it needs a shape, such as {name}:{_shape_of(CHIPS[name])}")
    if name == "cpu":
        return Topology(text, "cpu", _count(text, size), None)
    if name == "gpu":
        return _gpu(text, size)
    if name in _TPUS:
        return _tpu(text, CHIPS[name], size, int(several[1]) if several else 1)
    known = [*_TPUS, "gpu", "cpu"]
    hint = f" (did you mean 'gpu:{name}x8'?)" if name in _GPUS else did_you_mean(name, known)
    raise wrong(
        text,
        f"there is no chip {name!r}{hint}; there are {', '.join(_TPUS)}, "
        f"{', '.join(f'gpu:{each}' for each in _GPUS)} and cpu; such as {_EXAMPLES}",
    )


def wrong(text: str, message: str) -> UserError:
    """Return the error of a topology."""
    return UserError(f"--topology {text}: {message}")


def _count(text: str, size: str) -> int:
    if not size.isdigit() or int(size) < 1:
        raise wrong(text, "it needs a number of devices, such as cpu:8")
    if int(size) > _MOST_CPUS:
        raise wrong(
            text, f"each device is simulated by threads of this machine; at most cpu:{_MOST_CPUS}"
        )
    return int(size)


def _gpu(text: str, size: str) -> Topology:
    match = re.fullmatch(r"([a-z]+\d+)(?:x(\d+))?", size)
    name, count = (match[1], int(match[2] or 1)) if match else (size, 1)
    if name not in _GPUS:
        raise wrong(
            text,
            f"there is no GPU {name!r}{did_you_mean(name, _GPUS)}; there are {', '.join(_GPUS)}, "
            f"such as gpu:h100x16",
        )
    if count < 1 or (count > 8 and count % 8):
        near = -(-max(count, 1) // 8) * 8
        raise wrong(
            text,
            f"a host has 8 of them: up to 8, or a multiple of 8 (did you mean gpu:{name}x{near}?)",
        )
    return Topology(text, "gpu", count, CHIPS[name])


def _tpu(text: str, chip: Chip, size: str, slices: int) -> Topology:
    if slices < 1:
        raise wrong(text, f"it needs at least one slice, such as 2x{text.partition('x')[2]}")
    if not re.fullmatch(r"\d+(x\d+)*", size):
        raise wrong(text, f"it needs a shape, such as {_shape_of(chip)}")
    shape = tuple(map(int, size.split("x")))
    if not _exists(chip, shape):
        raise wrong(
            text, f"there is no such slice of {chip.title}{_near(chip, shape)}; {_slices(chip)}"
        )
    return Topology(text, "tpu", slices * math.prod(shape) * chip.per_chip, chip, slices)


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
