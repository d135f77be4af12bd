"""`trainer sample`: let the model of a run write text."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from trainer_core.cli.parsing import at_least, number_at_least
from trainer_core.cli.reading import params_argument, read_run
from trainer_core.cli.text import TEMPERATURE
from trainer_core.terminal.output import is_terminal, say
from trainer_core.terminal.page import Page

if TYPE_CHECKING:
    from trainer_core.cli.failures import Context
    from trainer_core.cli.parsing import Parser

_LENGTH = 400


def configure(parser: Parser) -> None:
    """Declare the arguments."""
    parser.add_argument("run", metavar="RUN", help="the directory of a run, such as runs/default")
    parser.add_argument(
        "prompt",
        metavar="PROMPT",
        nargs="?",
        help="how the text begins; by default like a line of held-out text",
    )
    parser.add_argument(
        "--length",
        metavar="TOKENS",
        type=at_least(1),
        default=_LENGTH,
        help=f"how much to write; {_LENGTH} by default",
    )
    parser.add_argument(
        "--temperature",
        metavar="NUMBER",
        type=number_at_least(0.0),
        default=TEMPERATURE,
        help=f"0: always the likeliest token; {TEMPERATURE} by default; higher: wilder",
    )
    parser.add_argument(
        "--seed",
        metavar="NUMBER",
        type=at_least(0),
        default=0,
        help="another text for each seed; 0 by default",
    )
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="set a key of the run's config otherwise, such as shard.mesh={data=1}",
    )
    params_argument(parser)
    parser.examples = [
        ('trainer sample runs/default "def "', "go on from these characters"),
        ("trainer sample runs/default --temperature=0", "what it holds likeliest"),
    ]


def run(arguments: Namespace, context: Context) -> int:
    """Write a text."""
    del context
    from trainer_core.cli.text import default_prompt, printable, write
    from trainer_core.cli.waiting import waiting

    with (
        read_run(Path(arguments.run), arguments.set, arguments.params) as reading,
        waiting("writing") as phase,
    ):
        program = reading.program
        phase("compiling and writing")
        prompt = arguments.prompt if arguments.prompt is not None else default_prompt(program)
        begun, added = write(
            program,
            reading.state,
            prompt,
            arguments.length,
            arguments.temperature,
            arguments.seed,
        )
    if not program.run.is_main:
        return 0
    if is_terminal():  # whatever a model writes must not act on it
        Page().line((printable(begun), "bold"), printable(added))
    else:
        say((begun + added).rstrip())
    return 0
