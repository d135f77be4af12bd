"""How a run ended: the figures, where it lies, what the model writes, and what to do next."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from trainer_core.cli.text import can_write, cut_into_lines, default_prompt, has_text, write
from trainer_core.cli.waiting import waiting
from trainer_core.defaults.jsonl import json_metrics, last_reported
from trainer_core.terminal import figures
from trainer_core.terminal.page import Page

if TYPE_CHECKING:
    from trainer_core.config import Config
    from trainer_core.loop import Result
    from trainer_core.program import Program

SAMPLE = 240  # tokens
_COMMAND = 66  # columns; what a longer command does stands below it
_MEANING = 28  # columns that what a command does needs beside it


def show(config: Config, result: Result, settings: list[str]) -> None:
    """Print the closing block.

    Args:
        config: of the run.
        result: what became of it.
        settings: the recipe and overrides, as they were typed.
    """
    page = Page()
    made = result.step - result.resumed_from
    metrics = result.metrics or _last_metrics(result)
    page.line()
    page.rows([*_ending(result, made), *_figures(metrics, result.program), *_place(config, result)])
    if made and not result.program.run.stopping:
        _show_sample(page, result)
    if commands := _next(config, result, settings):
        _show_commands(page, commands)


def as_json(config: Config, result: Result) -> str:
    """Return the last line of `--json`."""
    run = None if result.program is None else result.program.run
    metrics = result.metrics or ({} if run is None else _last_metrics(result))
    return json.dumps(
        {
            "event": "done",
            "directory": str(config.directory),
            "step": result.step,
            "steps": config.run.steps,
            "resumed_from": result.resumed_from,
            "devices": run and run.devices,
            "devices_before": run and run.devices_before,
            "stopped": result.stopped,
            "metrics": json_metrics(dict(metrics)),
        }
    )


def quality(loss: float, program: Program) -> str:
    """Return a loss in nats a token, and what it means where the tokens are text."""
    text = figures.loss(loss)
    data = program.data
    if data.vocabulary is None or not has_text(data) or not math.isfinite(loss):
        return text
    text += f", perplexity {figures.short(math.exp(min(loss, 700.0)))}"
    if data.vocabulary == 256:
        text += f", {loss / math.log(2):.3f} bits a byte"
    return text


def _ending(result: Result, made: int) -> list[tuple[str, str]]:
    steps = result.program.run.settings.steps
    if result.stopped:
        return [("stopped", f"by {result.stopped}, after step {result.step:,} of {steps:,}")]
    if not made:
        return [("finished", f"already: {result.step:,} steps were made before")]
    seconds = float(result.metrics.get("seconds", 0.0))
    text = figures.steps(result.step)
    if result.resumed_from:
        text += f", {made:,} of them now"
    text += f" in {figures.span(seconds)}"
    if result.program.tokens_per_step is not None and seconds:
        tokens = made * result.program.tokens_per_step
        text += f", {figures.amount(tokens)} tokens, {figures.short(tokens / seconds)} a second"
    return [("done", text)]


def _figures(metrics: Mapping[str, Any], program: Program) -> list[tuple[str, str]]:
    rows = []
    if "loss" in metrics:
        rows.append(("loss", figures.loss(metrics["loss"])))
    if "eval_loss" in metrics:
        rows.append(("eval loss", quality(metrics["eval_loss"], program)))
    if metrics.get("skipped_steps"):
        rows.append(("skipped", f"{metrics['skipped_steps']:,} steps that were not finite"))
    if metrics.get("loss_spikes"):
        rows.append(("spikes", f"{metrics['loss_spikes']:,} losses far above those before them"))
    return rows


def _place(config: Config, result: Result) -> list[tuple[str, str]]:
    if config.chosen["checkpoint"].candidate.name == "none":
        return [("run", f'{result.directory}, without a checkpoint: checkpoint.use = "none"')]
    return [("checkpoint", f"step {result.step:,} in {result.directory / 'checkpoints'}")]


def _show_sample(page: Page, result: Result) -> None:
    program = result.program
    if program.run.processes > 1 or not can_write(program):
        return
    with waiting("writing", plain=True):
        prompt, added = write(program, result.state, default_prompt(program), SAMPLE)
    page.line()
    page.line(("what it writes", "bold"), ("  after the beginning of a held-out line", "dim"))
    for line in cut_into_lines(prompt + added, page.width - 4):
        page.line(("  │ ", "dim"), line)


def _next(config: Config, result: Result, settings: list[str]) -> list[tuple[str, str]]:
    directory = shlex.quote(str(result.directory))
    rows = _reading(config, result, directory)
    if result.stopped:
        goes_on = "goes on from here" if _has_checkpoints(config) else "begins again"
        return [(_train_again(settings), goes_on), *rows]
    more, other = f"run.steps={2 * config.run.steps}", "run.name=NAME"
    if _has_checkpoints(config):
        rows.append((_train_again(settings, more), "goes on from here"))
    if result.step == result.resumed_from:
        rows.append((_train_again(settings, other), "trains anew, beside this run"))
    return rows


def _train_again(settings: list[str], change: str = "") -> str:
    """The command that was typed, with one setting changed."""
    replaced = {"": (), "run.name": ("run.name", "run.directory")}
    key = change.partition("=")[0]
    dropped = replaced.get(key, (key,))
    kept = [text for text in settings if text.partition("=")[0] not in dropped]
    return shlex.join(["trainer", "train", *kept, *([change] if change else [])])


def _show_commands(page: Page, commands: list[tuple[str, str]]) -> None:
    page.line()
    page.line(("next", "bold"))
    most = min(_COMMAND, page.width - 4 - _MEANING)
    fitting = [len(command) for command, _ in commands if len(command) <= most]
    for command, meaning in commands:
        *begun, last = _continued(command, page.width - 4)
        for line in begun:
            page.line("  ", (line, "cyan"))
        page.rows([(last, meaning)], indent=2, style="cyan", left=max(fitting, default=4) + 2)


def _continued(command: str, width: int) -> list[str]:
    """Break a long command as a shell allows it, so that it can still be copied."""
    lines = [""]
    for word in command.split(" "):
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines[-1] += " \\"
            lines.append(f"  {word}")
        else:
            lines[-1] += f" {word}" if lines[-1] else word
    return lines


def _reading(config: Config, result: Result, directory: str) -> list[tuple[str, str]]:
    if not _has_checkpoints(config):
        return []
    rows = [(f"trainer evaluate {directory}", "measures it on held-out data")]
    if can_write(result.program):
        rows.insert(0, (f'trainer sample {directory} "def "', "lets it write more"))
    return rows


def _has_checkpoints(config: Config) -> bool:
    return config.chosen["checkpoint"].candidate.name != "none"


def _last_metrics(result: Result) -> dict[str, Any]:
    """What was reported last by the processes before; empty where it cannot be read."""
    step, numbers = last_reported(result.directory / "metrics.jsonl")
    return numbers if step == result.step else {}
