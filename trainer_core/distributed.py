"""Several processes: connect them, and let them agree without a device collective."""

from __future__ import annotations

import itertools
import json
from typing import Any

import jax

from trainer_core.errors import UserError
from trainer_core.run import DistributedSettings

_calls = itertools.count()


def initialize(settings: DistributedSettings) -> None:
    """Connect this process to the others that `[distributed]` names; nothing where it is empty."""
    given = (settings.coordinator, settings.processes, settings.process)
    if all(value is None for value in given):
        return
    if any(value is None for value in given):
        raise UserError("[distributed] needs coordinator, processes and process, all three")
    jax.distributed.initialize(
        coordinator_address=settings.coordinator,
        num_processes=settings.processes,
        process_id=settings.process,
        initialization_timeout=settings.timeout,
    )


def broadcast(value: Any, process: int) -> Any:
    """Return process 0's value, through the coordination service's key-value store."""
    from jax._src import distributed  # no public name for the client yet

    client = distributed.global_state.client
    assert client is not None
    key = f"trainer/agree/{next(_calls)}"
    if process == 0:
        client.key_value_set(key, json.dumps(value))
        return value
    return json.loads(client.blocking_key_value_get(key, 300_000))
