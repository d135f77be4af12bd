"""Several processes: where this one stands among them, and how they are connected."""

from __future__ import annotations

import inspect
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import jax

from trainer_core.connecting import connecting
from trainer_core.errors import UserError, listed
from trainer_core.group import Group
from trainer_core.recipe import flatten
from trainer_core.roll_call import Place, roll_call
from trainer_core.run import DistributedSettings, StopRequest
from trainer_core.threads import enough_threads

if TYPE_CHECKING:
    from trainer_core.config import Config

# Seconds after the timeout at which JAX, too, notices a process that hangs, and aborts the others:
# only where `connecting` and `Watch`, which name it, could not.
_LATER = 30
_SPARED = "no_grpc_proxy"  # of the environment: hosts that gRPC reaches without a proxy
_NAMES = ("coordinator", "processes", "process")
_KEYS = tuple(f"distributed.{name}" for name in _NAMES)
# What may differ between the processes: their own places, and what is shown of the run.
_OWN = ("distributed.", "plugins.progress.")

_group: Group | None = None  # of this process, as JAX has one connection a process


def connect(config: Config, stopping: StopRequest | None = None) -> Group | None:
    """Connect this process to the others of its run; None where it is alone.

    Their number and places are those of `[distributed]`, and for the rest what the cluster tells.

    Args:
        config: of the run.
        stopping: what asks the run to stop. Where there are several it is deferred: one that left
            would leave the others waiting for it.

    Raises:
        UserError: settings that are missing, an address that cannot be reached, a process that is
            missing, or is not the same as process 0.
        Interrupted: one was asked to stop before all had come.
    """
    stopping = StopRequest() if stopping is None else stopping
    if jax.distributed.is_initialized():  # by an earlier run, or by the code that calls this one
        if jax.process_count() > 1:
            stopping.defer()
        return _joined(config)
    own, local_device_ids = _place(config.distributed)
    if own is None:
        return None
    stopping.defer()
    _check_address(own)
    from trainer_core.directory import versions

    made_of = versions(config)
    same = {
        "config": {key: value for key, value in flatten(config.table) if not key.startswith(_OWN)},
        "version": {**made_of["stack"], **made_of["plugins"], "python": made_of["python"]},
    }
    peers = roll_call(own, same, stopping)
    # JAX would take SIGTERM for its own service, which nobody asks here: see `SignalHandlers`.
    if hasattr(jax.config, "jax_enable_preemption_service"):
        jax.config.update("jax_enable_preemption_service", False)
    with connecting(own, peers, config.directory) as others, _past_proxies(own.host):
        jax.distributed.initialize(
            coordinator_address=own.coordinator,
            num_processes=own.processes,
            process_id=own.process,
            local_device_ids=local_device_ids,
            cluster_detection_method="deactivate",
            initialization_timeout=own.timeout + _LATER,
            heartbeat_timeout_seconds=own.timeout + _LATER,
            **_shutdown(own.timeout),
        )
        others.connected()
        with enough_threads(own.processes):
            jax.devices()  # here JAX waits for all of them again
    return _joined(config)


def place() -> int:
    """Return this process's index; 0 where it is alone."""
    return 0 if _group is None else _group.process


def is_bound() -> bool:
    """Whether JAX connects this process to others, or began to: it would end with them alone."""
    state = _state()
    return state.client is not None and state.num_processes > 1


def fail(error: BaseException) -> None:
    """Let the other processes, if there are any, know that the run of this one has failed."""
    if _group is not None:
        _group.tell(error)
        _group.fail_together()


def leave() -> None:
    """Before this process ends hard: let the others, if there are any, come to their end too."""
    if _group is not None:
        _group.leave()


def check_devices(devices: Sequence[jax.Device]) -> None:
    """Refuse processes with unequal numbers of devices.

    Raises:
        UserError: with the number of each.
    """
    counts = Counter(device.process_index for device in devices)
    if len(set(counts.values())) > 1:
        each = [f"process {process} has {counts[process]}" for process in sorted(counts)]
        raise UserError(
            f"every process needs the same number of devices, and they have different ones:"
            f"{listed(each)}"
        )


def _joined(config: Config) -> Group | None:
    """A group for this run: one that has ended, or was told of a failure, is of no further use."""
    global _group
    number = 0
    if _group is not None:
        _group.end()
        number = _group.number + 1
    if jax.process_count() > 1:
        _group = Group(
            _client(),
            jax.process_index(),
            jax.process_count(),
            config.distributed.timeout,
            config.directory,
            number,
        )
    return _group


def _place(settings: DistributedSettings) -> tuple[Place | None, Any]:
    """This process's place, and the ids of the local devices that the cluster leaves to it."""
    given = [settings.coordinator, settings.processes, settings.process]
    cluster = _cluster()
    if cluster is None and given == [None, None, None]:
        return None, None
    coordinator, processes, process, ids = (
        settings.coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS"),
        settings.processes,
        settings.process,
        None,
    )
    if cluster is not None:
        try:
            coordinator, processes, process, ids = cluster.auto_detect_unset_distributed_params(
                coordinator, processes, process, None, None, settings.timeout
            )
        except Exception as error:
            raise UserError(
                f"{cluster.__name__} does not tell where the processes of this run are: {error}; "
                f"give [distributed] coordinator, processes and process",
                *_KEYS,
            ) from error
    values = (coordinator, processes, process)
    missing = [key for key, value in zip(_NAMES, values, strict=True) if value is None]
    if coordinator is None or processes is None or process is None:
        raise UserError(
            f"[distributed] needs {' and '.join(missing)} as well: there is no cluster (SLURM, "
            f"Kubernetes, Open MPI, TPU pods) that would tell",
            *_KEYS,
        )
    if process >= processes:
        raise UserError(
            f"[distributed] process = {process} is none of {processes} processes, 0 to "
            f"{processes - 1}",
            *_KEYS,
        )
    if processes == 1:
        return None, None
    place = Place(
        coordinator=coordinator, processes=processes, process=process, timeout=settings.timeout
    )
    return place, ids


def _cluster() -> Any:
    """What JAX knows of the cluster that this process was started by; None where it knows none.

    There is no public way to ask: `jax.distributed.initialize` raises on a machine of its own.
    """
    try:
        from jax._src.clusters import ClusterEnv

        known = [each for each in ClusterEnv._cluster_types if not each.opt_in_only_method]
    except (ImportError, AttributeError):
        return None
    for each in known:
        # JAX takes every pod for a part of a job; one that is has an index in it.
        if each.__name__ == "K8sCluster" and "JOB_COMPLETION_INDEX" not in os.environ:
            continue
        if each.is_env_present():
            return each
    return None


def _check_address(place: Place) -> None:
    """An address of this machine is no address for processes on others."""
    # Not SLURM_NNODES: an allocation may have several machines, and the processes be on one.
    nodes = int(os.environ.get("SLURM_STEP_NUM_NODES") or 1)
    here = int(os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE") or place.processes)
    if place.is_loopback and (nodes > 1 or here < place.processes):
        raise UserError(
            f"[distributed] coordinator = {place.coordinator!r} is an address of each machine "
            f"itself, and the processes are on several; give the name of process 0's machine",
            *_KEYS,
        )


@contextmanager
def _past_proxies(host: str) -> Iterator[None]:
    """Let JAX connect as the processes met; through a proxy of the web it would wait for ever."""
    before = dict(os.environ)
    if any(name.lower().endswith("_proxy") for name in before):
        spared = before.get(_SPARED) or before.get("no_proxy")
        os.environ[_SPARED] = f"{host},{spared}" if spared else host
        if "jax_check_proxy_envs" in jax.config.values:  # it warns of what is mended here
            jax.config.update("jax_check_proxy_envs", False)
    try:
        yield
    finally:
        os.environ.pop(_SPARED, None)
        if _SPARED in before:
            os.environ[_SPARED] = before[_SPARED]


def _shutdown(seconds: int) -> dict[str, Any]:
    """How long JAX waits at an exit for those that have ended hard; 0.7 has no such argument."""
    name = "shutdown_timeout_seconds"
    known = inspect.signature(jax.distributed.initialize).parameters
    return {name: seconds} if name in known else {}


def _client() -> Any:
    client = _state().client
    assert client is not None
    return client


def _state() -> Any:
    from jax._src import distributed  # no public name for the client yet; Orbax does the same

    return distributed.global_state
