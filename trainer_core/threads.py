"""As many threads as the collectives of CPUs need, which otherwise wait for each other for ever.

XLA has as many as there are cores or devices, whichever is more. A collective of all devices of a
process takes one for each; several that are independent can share them out so that none is
complete. Between processes they have to come in the same order in each, and what is independent
comes in the order in which threads get to it: only one thread makes that the program's own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import entry_points
from importlib.util import find_spec

_VARIABLE = "PJRT_NPROC"  # what XLA's client for CPUs reads when it begins; then `NPROC`
_COLLECTIVES = 8  # at once
_MOST = 512  # threads; machines have limits


def threads_for(devices: int, processes: int = 1) -> dict[str, str]:
    """Return the environment in which so many CPU devices a process do not stand still.

    It is empty where one process has more cores than that, or the user has given a number.
    """
    given = os.environ.get(_VARIABLE) or os.environ.get("NPROC")
    if given:
        return {}
    if devices == 1:
        return {_VARIABLE: "1"} if processes > 1 else {}
    if devices < _cores():
        return {}
    return {_VARIABLE: str(max(devices, min(_COLLECTIVES * devices, _MOST)))}


@contextmanager
def enough_threads(processes: int = 1) -> Iterator[None]:
    """Let JAX begin its devices in this environment, and leave it to nothing else.

    Args:
        processes: that will train together; it counts only where there are no accelerators.
    """
    alone = processes == 1 or _has_accelerators()
    added: Mapping[str, str] = threads_for(_simulated(), 1 if alone else processes)
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


def _has_accelerators() -> bool:
    """Whether JAX looks for any: asking JAX itself would begin its devices."""
    import jax

    if asked := getattr(jax.config, "jax_platforms", None):
        return str(asked) != "cpu"
    # Plugins of JAX for accelerators are found by this; that of TPUs comes with JAX itself.
    return bool(entry_points(group="jax_plugins")) or find_spec("libtpu") is not None


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1
