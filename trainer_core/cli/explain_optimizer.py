"""`trainer explain optimizer`: by which rule each parameter is updated, and what that keeps."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trainer_core.cli.building import program_of
from trainer_core.terminal.figures import amount, size
from trainer_core.terminal.output import say
from trainer_core.terminal.page import Page

if TYPE_CHECKING:
    from trainer_core.config import Config
    from trainer_core.optimizer_table import Row


def explain(config: Config, as_json: bool) -> None:
    """Print the optimizer's table: of shapes alone, no parameter is made.

    Args:
        config: a resolved one.
        as_json: print one JSON object, path to what is known of it.
    """
    program = program_of(config)
    if as_json:
        say(json.dumps(program.optimizer_record, indent=2))
        return
    table = program.optimizer_table
    page = Page()
    chosen = config.chosen["optimizer"].candidate
    page.line()
    page.line(("[optimizer]", "bold"), f" use = {chosen.name}", (f"  {chosen.origin}", "dim"))
    page.line()
    columns = list(dict.fromkeys(["rule", *(name for row in table for name in row.told)]))
    page.table(
        [*columns, "state", "kind", "parameter"],
        [
            [
                *(_written(_told(row, chosen.name).get(name)) for name in columns),
                size(row.state_bytes),
                row.info.kind,
                _named(row),
            ]
            for row in table
        ],
    )
    page.line()
    page.rows(_totals(table, chosen.name))


def _told(row: Row, optimizer: str) -> Mapping[str, Any]:
    """An optimizer that tells nothing has one rule, its own."""
    return {"rule": optimizer, **row.told}


def _named(row: Row) -> str:
    blocks = ", ".join(name for name, _ in row.info.blocks)
    return f"{row.info.path} ({blocks})" if blocks else row.info.path


def _totals(table: Sequence[Row], optimizer: str) -> list[tuple[str, str]]:
    by_rule: dict[str, list[Row]] = {}
    for row in table:
        by_rule.setdefault(str(_told(row, optimizer)["rule"]), []).append(row)
    totals = [(rule, _total(rows)) for rule, rows in by_rule.items()]
    return [*totals, ("in all", _total(table))] if len(totals) > 1 else totals


def _total(rows: Sequence[Row]) -> str:
    elements = sum(math.prod(row.info.shape) for row in rows)
    state = size(sum(row.state_bytes for row in rows))
    plural = "s" * (len(rows) != 1)
    return f"{len(rows)} array{plural} of {amount(elements)} parameters, {state} of state"


def _written(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return ", ".join(map(_written, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)
