"""How a run ended: the figures, where it lies, what the model writes, and what to do next."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from trainer_core.cli.text import can_write, cut_into_lines, default_prompt, write
from trainer_core.defaults.jsonl import json_metrics
from trainer_core.terminal import figures
from trainer_core.terminal.page import Page

if TYPE_CHECKING:
    from trainer_core.config import Config
    from trainer_core.loop import Result
    from trainer_core.program import Program

SAMPLE = 240  # tokens


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
    page.line()
    page.line(("next", "bold"))
    page.rows(_next(config, result, settings), indent=2, style="cyan", left=46)


def as_json(config: Config, result: Result) -> str:
    """Return the last line of `--json`."""
    metrics = result.metrics or (_last_metrics(result) if result.program is not None else {})
    return json.dumps(
        {
            "event": "done",
            "directory": str(config.directory),
            "step": result.step,
            "steps": config.run.steps,
            "resumed_from": result.resumed_from,
            "stopped": result.stopped,
            "metrics": json_metrics(dict(metrics)),
        }
    )


def quality(loss: float, program: Program) -> str:
    """Return a loss in nats a token, and what it means where the tokens are text."""
    text = figures.loss(loss)
    data: Any = program.data
    if data.vocabulary is None or not hasattr(data, "decode") or not math.isfinite(loss):
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
    text = f"{result.step:,} steps"
    if result.resumed_from:
        text += f", {made:,} of them now"
    text += f" in {figures.duration(seconds)}"
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
    return rows


def _place(config: Config, result: Result) -> list[tuple[str, str]]:
    if config.chosen["checkpoint"].candidate.name == "none":
        return [("run", f'{result.directory}, without a checkpoint: checkpoint.use = "none"')]
    return [("checkpoint", f"step {result.step:,} in {result.directory / 'checkpoints'}")]


def _show_sample(page: Page, result: Result) -> None:
    program = result.program
    if program.run.processes > 1 or not can_write(program):
        return
    prompt, added = write(program, result.state, default_prompt(program), SAMPLE)
    page.line()
    page.line(("what it writes", "bold"), ("  after a line's beginning from held-out text", "dim"))
    for line in cut_into_lines(prompt + added, page.width - 4):
        page.line(("  │ ", "dim"), line)


def _next(config: Config, result: Result, settings: list[str]) -> list[tuple[str, str]]:
    directory = shlex.quote(str(result.directory))
    kept = [text for text in settings if not text.startswith(("run.steps=", "run.name="))]
    again = shlex.join(["trainer", "train", *kept])
    if result.stopped:
        typed = shlex.join(["trainer", "train", *settings])
        return [
            (typed, "goes on from here" if _has_checkpoints(config) else "begins again"),
            *_reading(config, result, directory),
        ]
    rows = _reading(config, result, directory)
    if _has_checkpoints(config):
        rows.append((f"{again} run.steps={2 * config.run.steps}", "goes on from here"))
    if not result.step > result.resumed_from:
        rows.append((f"{again} run.name=NAME", "trains anew, beside this run"))
    return rows


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
    try:
        lines = (result.directory / "metrics.jsonl").read_text().splitlines()
        last = json.loads(lines[-1])
    except (OSError, ValueError, IndexError):
        return {}
    numbers = {name: value for name, value in last.items() if isinstance(value, (int, float))}
    return numbers if numbers.pop("step", None) == result.step else {}
