"""`trainer explain sharding`: where each array lies, and what every device holds whole."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trainer_core.cli.building import program_of
from trainer_core.errors import UserError
from trainer_core.settings import shown
from trainer_core.terminal.figures import mesh_axes, size
from trainer_core.terminal.output import say
from trainer_core.terminal.page import Page

if TYPE_CHECKING:
    from trainer_core.config import Config
    from trainer_core.plan.topology import Topology
    from trainer_core.run import Run
    from trainer_core.sharding_table import Placed

_WORTH_NAMING = 2**20  # bytes, of an array that every device holds


def explain(
    config: Config,
    as_json: bool,
    plot: Path | None = None,
    topology: Topology | None = None,
) -> None:
    """Print where everything lies: of shapes alone, no array is made.

    Args:
        config: a resolved one.
        as_json: print one JSON object: the mesh, and each array.
        plot: draw it too, in a file of any kind that matplotlib writes.
        topology: the devices, which need not be there; by default those of this process.
    """
    import attrs

    if topology is None:
        _check_devices_are_all(config)
    program = program_of(config, topology)
    from trainer_core.sharding_table import sharding_table

    run, table = program.run, sharding_table(program)
    if plot is not None:
        from trainer_core.cli.sharding_plot import draw

        draw(table, run, plot)
    if as_json:
        arrays = [attrs.asdict(row) for row in table]
        say(json.dumps({"mesh": dict(run.mesh.shape), "arrays": arrays}, indent=2))
        return
    page = Page()
    chosen = config.chosen["shard"].candidate
    page.line()
    page.line(("[shard]", "bold"), f" use = {chosen.name}", (f"  {chosen.origin}", "dim"))
    replicas = run.axes.replica_axes(program.model.params)
    page.rows(
        [
            ("mesh", _mesh(run)),
            ("replicas", f"over {', '.join(replicas)}" if replicas else "none of the parameters"),
            *([("drawn", str(plot))] if plot is not None else []),
        ]
    )
    for part in dict.fromkeys(row.part for row in table):
        rows = [row for row in table if row.part == part]
        page.line()
        page.line((part, "bold"), f"  {_total(rows)}")
        page.table(
            ["array", "copies", "whole", "on each", "axes"],
            [
                [row.path, str(row.copies), size(row.bytes), size(row.bytes_on_device), _axes(row)]
                for row in rows
            ],
        )
    page.line()
    page.rows([("state", _total([row for row in table if row.part != "batch"])), *_whole(table)])


def _check_devices_are_all(config: Config) -> None:
    """This command connects no processes, and so sees the devices of one."""
    processes = config.table["distributed"].get("processes") or 1
    dcn = config.table["shard"].get("dcn")
    given = {
        "distributed.processes": f"[distributed] processes = {processes}" if processes > 1 else "",
        "shard.dcn": f"[shard] dcn = {shown(dcn)}" if dcn and max(dcn.values()) > 1 else "",
    }
    for key, text in given.items():
        if text:
            raise UserError(
                f"{text}: `trainer explain sharding` connects no processes, and sees the devices "
                f"of one; name all of them, such as --topology gpu:h100x16 or --topology 2xv5e:4x4",
                key,
            )


def _mesh(run: Run) -> str:
    devices = run.mesh.devices.flat
    sizes = mesh_axes(run.mesh.shape)
    return f"{sizes}, {len(devices)} {devices[0].device_kind} device{'s' * (len(devices) != 1)}"


def _total(rows: Sequence[Placed]) -> str:
    held = size(sum(row.bytes_on_device for row in rows))
    return f"{size(sum(row.bytes for row in rows))}, {held} on each device"


def _axes(row: Placed) -> str:
    """`layers embed=fsdp mlp=tensor`; a dot for an axis without a name."""
    return " ".join(
        f"{name or '·'}={','.join(spread)}" if spread else name or "·"
        for name, spread in zip(row.axes, row.spec, strict=True)
    )


def _whole(table: Sequence[Placed]) -> list[tuple[str, str]]:
    """What is not spread at all, though it is large or was to be."""
    uneven = [f"{row.path}: {axis}" for row in table for axis in row.uneven]
    large = [
        f"{row.path} ({size(row.bytes)})"
        for row in table
        if row.copies > 1 and row.bytes == row.bytes_on_device >= _WORTH_NAMING
    ]
    rows = [("uneven", uneven), ("on every device", large)]
    return [(label, "\n".join(lines)) for label, lines in rows if lines]
