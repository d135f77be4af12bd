"""Whether Muon helps: against AdamW on the default corpus, the learning rate swept for both.

Each run is `trainer train` of the tiny preset, 300 steps, evaluated at the end. Three seeds; the
sweep is of the first, the others have the best rate of each and its neighbours. What was run is
kept in the folder, so that a sweep that was stopped goes on.

The time of a step is measured apart, both optimizers in turns, as a run's own would be that of
whatever else the machine does; also for other settings than the preset's. With `--ratio`, what came
out of that, AdamW is given so many more steps besides.

    uv run python benchmarks/muon_training.py --time [KEY=VALUE ...] [--rounds 40]
    uv run python benchmarks/muon_training.py --folder FOLDER [--ratio 1.05] [--plot FILE.svg]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import jax
from rich.console import Console
from rich.table import Table

RATES = (1e-3, 2e-3, 4e-3, 8e-3, 16e-3, 32e-3)
SEEDS = (0, 1, 2)
OPTIMIZERS = ("adamw", "muon")
STEPS = 300


def loss_of(folder: Path, optimizer: str, rate: float, seed: int, steps: int = STEPS) -> float:
    """Return the held-out loss at the end of a run, which is made if it is not there."""
    name = f"{optimizer}-{rate:g}-{seed}" + (f"-{steps}" if steps != STEPS else "")
    if steps not in evaluations(folder / name):
        settings = {
            "optimizer.use": optimizer,
            "schedule.learning_rate": rate,
            "run.seed": seed,
            "run.steps": steps,
            "run.eval_every": 50,
            "run.directory": folder / name,
            "checkpoint.use": "none",
        }
        pairs = [f"{key}={value}" for key, value in settings.items()]
        trainer = [sys.executable, "-m", "trainer_core", "train", "--quiet"]
        subprocess.run([*trainer, *pairs], check=True, stdout=subprocess.DEVNULL)
    return evaluations(folder / name)[steps]


def evaluations(run: Path) -> dict[int, float]:
    """Return the held-out losses of a run, by step; none where it was not begun."""
    lines = run / "metrics.jsonl"
    found = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
    return {line["step"]: line["eval_loss"] for line in found if "eval_loss" in line}


def best_rate(losses: dict[float, float]) -> float:
    return min(losses, key=lambda rate: losses[rate])


def swept(folder: Path) -> dict[str, dict[float, list[float]]]:
    """Return the losses by optimizer and rate, one for each seed."""
    found: dict[str, dict[float, list[float]]] = {}
    for optimizer in OPTIMIZERS:
        first = {rate: loss_of(folder, optimizer, rate, SEEDS[0]) for rate in RATES}
        at = RATES.index(best_rate(first))
        found[optimizer] = {rate: [loss] for rate, loss in first.items()}
        for rate in RATES[max(0, at - 1) : at + 2]:
            found[optimizer][rate] += [loss_of(folder, optimizer, rate, s) for s in SEEDS[1:]]
    return found


def step_ratio(overrides: list[str], rounds: int) -> float:
    """Return the median time of a step with Muon over that with AdamW, in turns."""
    from trainer_core.assemble import open_run
    from trainer_core.config import load_config
    from trainer_core.program import build_program

    programs, states, steps = [], [], []
    for optimizer in OPTIMIZERS:
        run, hooks = open_run(load_config(None, [f"optimizer.use={optimizer}", *overrides]))
        programs.append(build_program(run, hooks))
        steps.append(programs[-1].compile_step())
        states.append(programs[-1].initial_state())
    batch = programs[0].place(programs[0].data.batch(0))
    ratios = []
    for turn in range(rounds):
        seconds = [0.0, 0.0]
        for each in (0, 1) if turn % 2 else (1, 0):
            began = time.process_time()
            states[each], metrics = steps[each](states[each], batch)
            jax.block_until_ready(metrics)
            seconds[each] = time.process_time() - began
        ratios.append(seconds[1] / seconds[0])
    return statistics.median(ratios[1:])


def longer(folder: Path, losses: dict[str, dict[float, list[float]]], ratio: float) -> None:
    """Give AdamW the time that Muon has, and print its losses."""
    rate = best_rate({rate: each[0] for rate, each in losses["adamw"].items()})
    steps = round(STEPS * ratio)
    found = [loss_of(folder, "adamw", rate, seed, steps) for seed in SEEDS]
    texts = ", ".join(f"{loss:.4f}" for loss in found)
    print(f"adamw, {rate:g}, {steps} steps: {texts}, mean {statistics.mean(found):.4f}")


def show(losses: dict[str, dict[float, list[float]]]) -> None:
    table = Table("optimizer", "learning rate", "held-out loss", "mean", "seeds")
    for optimizer, by_rate in losses.items():
        for rate, each in by_rate.items():
            texts = ", ".join(f"{loss:.4f}" for loss in each)
            table.add_row(
                optimizer, f"{rate:g}", texts, f"{statistics.mean(each):.4f}", str(len(each))
            )
    Console(width=100).print(table)


def plot(folder: Path, losses: dict[str, dict[float, list[float]]], file: Path) -> None:
    """Draw the held-out loss by step, of the best rate of each optimizer, every seed a line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for optimizer, colour in zip(OPTIMIZERS, ("tab:gray", "tab:red"), strict=True):
        swept_fully = {rate: each for rate, each in losses[optimizer].items() if len(each) > 1}
        rate = best_rate({rate: statistics.mean(each) for rate, each in swept_fully.items()})
        for seed in SEEDS:
            curve = evaluations(folder / f"{optimizer}-{rate:g}-{seed}")
            label = f"{optimizer}, learning rate {rate:g}" if seed == SEEDS[0] else None
            axes.plot(list(curve), list(curve.values()), color=colour, label=label)
    axes.set(xlabel="step", ylabel="held-out loss, nats a byte")
    axes.legend(title=f"seeds {', '.join(map(str, SEEDS))}")
    figure.savefig(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/muon-training"))
    parser.add_argument("--time", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--ratio", type=float)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    if arguments.time is not None:
        ratio = step_ratio(arguments.time, arguments.rounds)
        print(f"a step of Muon takes {ratio:.3f} of the processor's time of AdamW's")
        return
    losses = swept(arguments.folder)
    show(losses)
    if arguments.ratio:
        longer(arguments.folder, losses, arguments.ratio)
    if arguments.plot:
        plot(arguments.folder, losses, arguments.plot)


if __name__ == "__main__":
    main()
