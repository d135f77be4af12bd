"""The devices of a topology, as JAX gives them where they need not be there."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from trainer_core.errors import UserError
from trainer_core.plan.topology import Topology, wrong

if TYPE_CHECKING:
    import jax


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
                platform="tpu", topology_name=topology.slice_name, **_built(topology)
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
        raise wrong(topology.text, f"the compiler refuses it: {error}") from error
    return tuple(found.devices)


def _built(topology: Topology) -> dict[str, Any]:
    """How slices, and their chips, are put together, where libtpu's default is something else."""
    assert topology.chip is not None
    options: dict[str, Any] = {}
    if topology.slices > 1:
        options["num_slices"] = topology.slices
    if topology.slice_name.startswith("v4:"):
        options["chip_config_name"] = "megacore"  # one device a chip, as on the real ones
    if topology.count == topology.slices * topology.chip.per_chip:
        options["chips_per_host_bounds"] = (1, 1, 1)
    return options
