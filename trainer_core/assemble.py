"""From a checked config to a run: devices, mesh, and a plugin manager. Here jax comes in."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax

from trainer_core.axes import AxisRules
from trainer_core.compile_cache import use_compile_cache
from trainer_core.config import Config
from trainer_core.directory import may_change, recorded
from trainer_core.distributed import check_devices, connect, fail
from trainer_core.group import Group
from trainer_core.hooks import Hooks, register
from trainer_core.mesh import make_mesh
from trainer_core.run import Run, StopRequest
from trainer_core.threads import enough_threads


def open_run(
    config: Config,
    stopping: StopRequest | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> tuple[Run, Hooks]:
    """Connect the processes, lay out the mesh, and register the plugins of a config.

    A shard plugin without the settings `mesh` and `rules` gets one axis, for the batch alone.

    Args:
        config: a resolved one.
        stopping: what asks the run to stop.
        devices: of the mesh, though they need not be there: the run can then be planned, by one
            process alone. By default all those of all processes.

    Raises:
        UserError: a mesh that does not fit the devices; plugins that do not fit the hooks.
    """
    use_compile_cache()
    stopping = StopRequest() if stopping is None else stopping
    if devices is not None:
        return _assembled(config, devices, None, stopping)
    with enough_threads():
        group = connect(config, stopping)
        try:
            check_devices(jax.devices())
            return _assembled(config, jax.devices(), group, stopping)
        except BaseException as error:
            fail(error)
            raise


def _assembled(
    config: Config, devices: Sequence[jax.Device], group: Group | None, stopping: StopRequest
) -> tuple[Run, Hooks]:
    shard = config.chosen["shard"].plugin
    mesh = make_mesh(getattr(shard, "mesh", {"data": -1}), devices, getattr(shard, "dcn", {}))
    if hasattr(shard, "rules"):
        optional = [name for name in ("overrides", "uneven") if hasattr(shard, name)]
        axes = AxisRules(mesh, shard.rules, **{name: getattr(shard, name) for name in optional})
    else:
        axes = AxisRules(mesh, {"batch": tuple(mesh.shape)}, others="")
    run = Run(
        config=config.table,
        settings=config.run,
        directory=config.directory,
        mesh=mesh,
        axes=axes,
        process=jax.process_index() if group else 0,
        processes=jax.process_count() if group else 1,
        group=group,
        stopping=stopping,
        devices_before=recorded(config.directory, "devices") or "",
        may_change=functools.partial(may_change, config),
    )
    return run, register(config)
