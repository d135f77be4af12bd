"""A drawing of what one device holds: a bar for each array, coloured by what it is spread over."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trainer_core.errors import UserError
from trainer_core.terminal.figures import mesh_axes, size

if TYPE_CHECKING:
    from trainer_core.run import Run
    from trainer_core.sharding_table import Placed

_BARS = 40


def draw(table: Sequence[Placed], run: Run, file: Path) -> None:
    """Write the largest arrays, by what a device holds of them.

    Raises:
        UserError: matplotlib is not installed, or does not write such files.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError(
            'a plot needs matplotlib: pip install "trainer-core[plot]"',
        ) from None
    rows = sorted(table, key=lambda row: -row.bytes_on_device)[:_BARS]
    by_axes: dict[str, list[int]] = {}
    for at, row in enumerate(rows):
        over = {axis for axes in row.spec for axis in axes}
        spread = [axis for axis in run.mesh.shape if axis in over]
        by_axes.setdefault(", ".join(spread) or "whole on each device", []).append(at)
    figure = Figure(figsize=(10, 1.5 + 0.2 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for label, places in by_axes.items():
        axes.barh(places, [rows[at].bytes_on_device for at in places], label=label)
    axes.set_yticks(range(len(rows)), [f"{row.part}: {row.path}" for row in rows], fontsize=7)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.xaxis.set_major_formatter(lambda value, _: size(round(value)))
    mesh = mesh_axes(run.mesh.shape)
    held = size(sum(row.bytes_on_device for row in table))
    left = f", the {len(rows)} largest of {len(table)} arrays" if len(table) > len(rows) else ""
    axes.set_title(f"{held} of state and batch on each device, mesh {mesh}{left}", fontsize=9)
    axes.legend(title="spread over", fontsize=8)
    try:
        figure.savefig(file)
    except (ValueError, OSError) as error:
        raise UserError(f"--plot {file}: {error}") from None
