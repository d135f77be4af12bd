"""What every hook is given first: the run's config, its place on disk and on the mesh."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
from attrs.validators import and_, ge, lt

from trainer_core.errors import SettingError
from trainer_core.plugin import plugin, setting
from trainer_core.terminal.figures import mesh_axes

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from trainer_core.axes import AxisRules
    from trainer_core.group import Group


def _is_folder_name(run: Any, attribute: attrs.Attribute[str], value: str) -> None:
    if not value.strip() or value in (".", "..") or set(value) & set("/\\\0"):
        raise ValueError("must be a plain folder name; for a path, set run.directory")


def _is_address(run: Any, attribute: attrs.Attribute[str], value: str) -> None:
    host, colon, port = value.rpartition(":")
    if not (host and colon and port.isdecimal() and 0 < int(port) < 2**16):
        raise ValueError("must be HOST:PORT, such as node1:1234; any free port of process 0's host")


@plugin
class RunSettings:
    """The `[run]` table."""

    name: str = setting(
        "default",
        "what the run is called",
        check=_is_folder_name,
        may_change=True,
    )
    directory: str | None = setting(
        None, "where the run is written; runs/NAME where not given", may_change=True
    )
    seed: int = setting(
        0, "of the parameters, the data order and dropout", check=and_(ge(0), lt(2**63))
    )
    steps: int = setting(300, "train until this step", unit="steps", check=ge(1), may_change=True)
    log_every: int = setting(
        1, "report metrics this often", unit="steps", check=ge(1), may_change=True
    )
    eval_every: int = setting(
        100,
        "evaluate this often, and at the end; 0: at the end only",
        unit="steps",
        check=ge(0),
        may_change=True,
    )
    eval_batches: int = setting(
        32, "how much held-out data to evaluate on", unit="batches", check=ge(0), may_change=True
    )

    @property
    def another(self) -> str:
        """What gives another run, in the way in which this one was given."""
        return "run.directory=PATH" if self.directory else "run.name=NAME"


@plugin
class DistributedSettings:
    """The `[distributed]` table; empty where the cluster tells (TPU pods, SLURM, Kubernetes)."""

    coordinator: str | None = setting(
        None, "HOST:PORT of process 0", check=_is_address, may_change=True
    )
    processes: int | None = setting(
        None, "how many processes there are", unit="processes", check=ge(1), may_change=True
    )
    process: int | None = setting(None, "which one this is", check=ge(0), may_change=True)
    # From 10 on, those who wait for one that hangs have ended by then; see `watch.patience`.
    timeout: int = setting(
        300, "wait this long for the others", unit="seconds", check=ge(10), may_change=True
    )

    def __attrs_post_init__(self) -> None:
        if self.process is None or self.processes is None:
            return
        if self.process >= self.processes:
            raise SettingError(
                "process", f"of {self.processes} processes, the last is {self.processes - 1}"
            )


class StopRequest:
    """Whether the run was asked to stop, and why; set by a signal or a plugin, read by the loop.

    Attributes:
        reason: why; empty where it was not asked.
        is_deferred: whether a stop waits for the end of a step, as others wait for this process.
    """

    def __init__(self) -> None:
        self._event = threading.Event()
        self.reason = ""
        self.is_deferred = False

    def __bool__(self) -> bool:
        return self._event.is_set()

    def set(self, reason: str) -> None:
        self.reason = self.reason or reason
        self._event.set()

    def defer(self) -> None:
        """From now on a stop waits for the end of a step: what was begun is finished."""
        self.is_deferred = True


@attrs.frozen(kw_only=True, eq=False)
class Run:
    """One run, as its plugins see it.

    Attributes:
        config: the resolved config: table to key to value, defaults included, `[plugins.NAME]`
            under `plugins`. Plain TOML values; read-only.
        settings: the `[run]` table.
        directory: where the run is written.
        mesh: the devices, by mesh axis.
        axes: from logical axis names to mesh axes, for parameters and activations.
        process: this process's index, and `processes` how many there are.
        group: what connects them; None where there is only one.
        stopping: whether the run will stop at the next step boundary.
        devices_before: what `devices` was when the run directory was last trained in; empty where
            it was not.
        is_read: whether a command reads its newest state, and trains nothing.
        may_change: whether a dotted key of the config may change when the run goes on: what it
            trains does not depend on that.
    """

    config: Mapping[str, Any]
    settings: RunSettings
    directory: Path
    mesh: Mesh
    axes: AxisRules
    process: int = 0
    processes: int = 1
    group: Group | None = None
    stopping: StopRequest = attrs.field(factory=StopRequest)
    devices_before: str = ""
    is_read: bool = False
    may_change: Callable[[str], bool] = lambda key: False

    @property
    def devices(self) -> str:
        """The devices in a few words: `8 x CPU, mesh data 2 x fsdp 4, 2 processes`."""
        devices = self.mesh.devices.flat
        kind = devices[0].device_kind
        spread = {name: size for name, size in self.mesh.shape.items() if size > 1}
        mesh = f", mesh {mesh_axes(spread)}" if spread else ""
        places = f", {self.processes} processes" if self.processes > 1 else ""
        return f"{len(devices)} x {kind.upper() if kind == 'cpu' else kind}{mesh}{places}"

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes what all of them agree on."""
        return self.process == 0

    @property
    def save_every(self) -> int:
        """Steps between two saves; 0 where the checkpoint plugin has no such setting."""
        return int(self.config["checkpoint"].get("every", 0))

    @property
    def batch_size(self) -> int:
        """Sequences (or examples) in a global batch."""
        return int(self.config["data"].get("batch_size", 1))

    @functools.cached_property  # asked for at each step, and found by going through all devices
    def rows(self) -> range:
        """This process's rows of a global batch: those that its data source gives.

        Processes whose devices hold the same rows give the same ones.
        """
        if self.processes == 1:
            return range(self.batch_size)
        return self.axes.batch_rows(self.batch_size, self.process)

    def pass_by(self, phase: str | None = None, step: int | None = None) -> None:
        """Note what this process does now, for the others where it hangs; it costs microseconds.

        All processes pass by the same places, in the same order.
        """
        if self.group is not None:
            self.group.pass_by(phase, step)

    def watched(self, compute: Callable[..., Any]) -> Callable[..., Any]:
        """Return a compiled function with an eye on it: where it never ends, the run does.

        Of several processes, devices that wait for each other for ever are told from ones at work
        by what they finish. One process gets the function back as it is.
        """
        return compute if self.group is None else self.group.watched(compute)

    def tell(self, error: BaseException) -> None:
        """Let the other processes, if there are any, know that this one has failed."""
        if self.group is not None:
            self.group.tell(error)

    def stop(self, reason: str) -> None:
        """Ask the run to stop after the step that is under way; it saves, and exits 0."""
        self.stopping.set(reason)

    def agree(self, value: Any) -> Any:
        """Return process 0's value on every process: the only way to decide something together.

        Every process calls it, in the same order. It goes through the coordination service, never
        through a device, and waits for the slowest process. The value is JSON.

        Raises:
            RunError: another process has failed, or did not come in time.
        """
        return self.gather(value if self.is_main else None).get(0)

    def gather(self, value: Any, seconds: float | None = None) -> dict[int, Any]:
        """Return what each process gave, by its index, as `agree` does; None counts as nothing."""
        if self.group is not None:
            return self.group.gather(value, seconds)
        return {} if value is None else {self.process: value}
