"""`trainer evaluate`: measure the model of a run on held-out data."""

from __future__ import annotations

import json
import time
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer_core.cli.reading import params_argument, read_run
from trainer_core.errors import UserError
from trainer_core.terminal import figures
from trainer_core.terminal.output import say
from trainer_core.terminal.page import Page

if TYPE_CHECKING:
    from trainer_core.cli.failures import Context
    from trainer_core.cli.parsing import Parser
    from trainer_core.cli.reading import Reading


def configure(parser: Parser) -> None:
    """Declare the arguments."""
    parser.add_argument("run", metavar="RUN", help="the directory of a run, such as runs/default")
    parser.add_argument(
        "settings",
        metavar="KEY=VALUE",
        nargs="*",
        default=[],
        help="what to set otherwise for this once",
    )
    params_argument(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.examples = [
        ("trainer evaluate runs/default", "as at the end of the run"),
        ("trainer evaluate runs/default run.eval_batches=1000", "on more of the held-out data"),
        ("trainer evaluate runs/default data.path=other.txt", "on the held-out part of other text"),
    ]


def run(arguments: Namespace, context: Context) -> int:
    """Print the loss on held-out data."""
    del context
    from trainer_core.cli.waiting import waiting
    from trainer_core.defaults.evaluate import build_held_out_loss
    from trainer_core.defaults.jsonl import json_metrics
    from trainer_core.signals import interruptible

    with read_run(Path(arguments.run), arguments.settings, arguments.params) as reading:
        batches = _batches(reading)
        began = time.monotonic()
        with waiting("evaluating"):
            losses = build_held_out_loss(reading.program)
            metrics = interruptible(lambda: losses(reading.state, batches))
        seconds = time.monotonic() - began
        if not reading.program.run.is_main:
            return 0
        if arguments.json:
            say(json.dumps({"step": reading.step, "batches": batches, **json_metrics(metrics)}))
        else:
            Page().rows(_rows(arguments, reading, batches, metrics, seconds))
    return 0


def _batches(reading: Reading) -> int:
    data, wanted = reading.program.data, reading.program.run.settings.eval_batches
    if not data.held_out_batches:
        raise UserError(
            "there is no held-out data to evaluate on; [data] decides how much is held out"
        )
    if not wanted:
        raise UserError("run.eval_batches = 0 leaves nothing to evaluate on; set it higher")
    return min(wanted, data.held_out_batches)


def _rows(
    asked: Namespace, reading: Reading, batches: int, metrics: dict[str, Any], seconds: float
) -> list[tuple[str, str]]:
    from trainer_core.cli.closing import quality

    program = reading.program
    size = f"{batches:,} of {program.data.held_out_batches:,} held-out batches"
    if program.tokens_per_step is not None:
        size += f", {figures.amount(batches * program.tokens_per_step)} tokens"
    rows = [
        ("run", f"{asked.run}, step {reading.step:,}"),
        *([("params", asked.params)] if asked.params else []),
        ("data", f"{size}, in {figures.span(seconds)}"),
        ("eval loss", quality(metrics["eval_loss"], program)),
    ]
    rows += [
        (name.replace("_", " "), figures.loss(value))
        for name, value in metrics.items()
        if name != "eval_loss"
    ]
    return rows
