"""Enough threads for the collectives of simulated devices, which otherwise wait for each other.

XLA has as many as there are cores or devices, whichever is more. A collective of all devices takes
one for each; several that are independent can share them out so that none is complete.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

_VARIABLE = "PJRT_NPROC"  # what XLA's client for CPUs reads when it begins; then `NPROC`
_COLLECTIVES = 8  # at once
_MOST = 512  # threads; machines have limits


def threads_for(devices: int) -> dict[str, str]:
    """Return the environment in which so many simulated devices do not stand still.

    It is empty where the machine has more cores than that, or the user has given a number.
    """
    given = os.environ.get(_VARIABLE) or os.environ.get("NPROC")
    if given or devices == 1 or devices < _cores():
        return {}
    return {_VARIABLE: str(max(devices, min(_COLLECTIVES * devices, _MOST)))}


@contextmanager
def enough_threads() -> Iterator[None]:
    """Let JAX begin its devices in this environment, and leave it to nothing else."""
    added: Mapping[str, str] = threads_for(_simulated())
    os.environ |= added
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name)


def _simulated() -> int:
    import jax

    if (asked := getattr(jax.config, "jax_num_cpu_devices", -1)) > 0:
        return int(asked)
    flags = os.environ.get("XLA_FLAGS", "")
    given = re.findall(r"--xla_force_host_platform_device_count=(\d+)", flags)
    return int(given[-1]) if given else 1


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1
