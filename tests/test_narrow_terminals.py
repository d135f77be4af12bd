"""What is wide is wrapped between words, in its column or under its row, and nothing is lost."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from command import PERCEPTRON
from rich.console import Console
from terminals import on_terminal

from trainer_core.cli import run
from trainer_core.cli.explain_hooks import by_hook
from trainer_core.config import load_config
from trainer_core.terminal.lines import print_step, step_line
from trainer_core.terminal.page import Page

LONG = "/".join(["a_folder_of_many"] * 4)
SOURCE = f"""
from trainer_core import hookimpl, plugin

@plugin
class WrapsEveryStepOfTheRun:
    where_it_writes_what_it_saw: str = "{LONG}"

    @hookimpl(wrapper=True)
    def report(self):
        return (yield)
"""
RECIPE = """
[optimizer]
use = "muon"
rules = {"layers/attention/query/kernel" = "adamw"}

[plugins.observer_of_steps]
use = "observers_of_runs:WrapsEveryStepOfTheRun"
"""
NAMES = ["observers_of_runs:WrapsEveryStepOfTheRun", "recipe_with_a_long_name.toml:4"]


TABLES = """\
key        of       meaning
steps      the run  train until this
log_every  the run  report this often report
                    this often
key                          of
a_key_of_more_than_24_letters_may
                             not be cut in two
key                       from
    meaning
kkkkkkkkkkkkkkkkkkkkkkkk
                      wwwwwwwwwwwwwwwwwwwwwwww
    what does not fit beside it, under it
""".splitlines()
CALL = {
    60: [
        "    [plugins.observer_of_steps]",
        "    observers_of_runs:WrapsEveryStepOfTheRun 0 around",
        "    ([step] gradient 0, [plugins.jsonl] 0,",
        "    [plugins.progress] 0)",
    ],
    80: [
        "    [plugins.observer_of_steps] observers_of_runs:WrapsEveryStepOfTheRun 0",
        "    around ([step] gradient 0, [plugins.jsonl] 0, [plugins.progress] 0)",
    ],
}


@pytest.fixture
def recipe(user_file: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    user_file("observers_of_runs.py", SOURCE)
    (tmp_path / "recipe_with_a_long_name.toml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return "recipe_with_a_long_name.toml"


def lines_of(text: str) -> list[str]:
    return [line for line in re.split(r"[\r\n]+", text) if line.strip()]


@pytest.mark.parametrize("columns", [60, 80, 100])
def test_explain_config_shows_every_word_on_each_width(
    recipe: str, columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["explain", "config", recipe, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    _, text = on_terminal(["explain", "config", recipe], 0, monkeypatch, columns)
    lines = lines_of(text)
    # The one word that is wider than 60 columns is not cut, so that it can be copied.
    assert [line for line in lines if len(line) > columns] == (
        [f'  "{LONG}"'] if columns == 60 else []
    )
    words = set(text.split())
    for key, about in found.items():
        told = [key.rpartition(".")[2], about["from"], about["meaning"], about["unit"]]
        missing = {word for each in told for word in each.split()} - words
        assert missing <= {each + "s" for each in words}, key  # one step, many steps
    assert {f'"{LONG}"', f'"{NAMES[0]}"', NAMES[1]} <= words


@pytest.mark.parametrize("columns", [60, 80, 100])
def test_explain_hooks_shows_every_word_on_each_width(
    recipe: str, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, text = on_terminal(["explain", "hooks", recipe], 0, monkeypatch, columns)
    lines = lines_of(text)
    assert max(map(len, lines)) <= columns
    words = text.split()
    for hook, called in by_hook(load_config(Path(recipe))).items():
        assert hook in words
        for each in called:
            assert {*each.candidate.origin.split()} <= {*words}
    around = "[plugins.observer_of_steps]"
    assert words[words.index(around) + 1] == "around"


def test_columns_give_way_where_they_are_widest() -> None:
    written = io.StringIO()
    page = Page(Console(file=written, width=46, color_system=None))
    page.table(
        ("key", "of", "meaning"),
        [
            ("steps", "the run", "train until this"),
            ("log_every", "the run", "report this often " * 2),
        ],
    )
    page.table(("key", "of"), [("a_key_of_more_than_24_letters_may", "not be cut in two")])
    page.table(
        ("key", "from", "meaning"), [("k" * 24, "w" * 24, "what does not fit beside it, under it")]
    )
    assert written.getvalue().splitlines() == TABLES


@pytest.mark.parametrize("columns", [60, 80])
def test_hook_calls_are_wrapped_below_themselves(
    user_file: Any, tmp_path: Path, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    user_file("observers_of_runs.py", SOURCE)
    monkeypatch.chdir(tmp_path)
    settings = [*PERCEPTRON, "checkpoint.use=none", "run.steps=2", "run.eval_every=0"]
    settings += [f"plugins.observer_of_steps.use={NAMES[0]}", "--trace-hooks"]
    _, text = on_terminal(["train", *settings], 0, monkeypatch, columns)
    lines = re.split(r"[\r\n]+", text)
    begun = next(index for index, line in enumerate(lines) if line.startswith("hook report 2"))
    end = next(index for index in range(begun + 1, len(lines)) if lines[index][:1] != " ")
    assert [re.sub(r" [\d.]+", " 0", line) for line in lines[begun + 1 : end]] == CALL[columns]


METRICS = {"loss": 1.8342, "eval_loss": 1.9, "learning_rate": 8e-4, "grad_norm": 0.41}
METRICS["tokens_per_second"] = 12345.0


@pytest.mark.parametrize(("columns", "count"), [(40, 3), (60, 2), (80, 2), (100, 1)])
def test_step_lines_are_wrapped_between_their_fields(columns: int, count: int) -> None:
    written = io.StringIO()
    page = Page(Console(file=written, width=columns, color_system=None))
    print_step(page, 1000, 1000, METRICS)
    lines = written.getvalue().splitlines()
    assert max(map(len, lines)) <= columns
    assert len(lines) == count
    whole = step_line(1000, 1000, METRICS)
    assert "".join(lines) == "".join(part if isinstance(part, str) else part[0] for part in whole)
    assert all(line.startswith("  ") for line in lines[1:])


def test_a_step_is_one_line_of_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    print_step(Page(), 1000, 1000, METRICS | {f"metric_{each}": 1.0 for each in range(9)})
    (line,) = capsys.readouterr().out.splitlines()
    assert len(line) > 100


@pytest.mark.parametrize("columns", [60, 80])
def test_what_to_do_next_fits_the_terminal(
    tmp_path: Path, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = [*PERCEPTRON, "checkpoint.use=orbax", "run.steps=1", f"run.name={'n' * 30}"]
    _, text = on_terminal(["train", *settings], 0, monkeypatch, columns)
    block = text.replace("\r", "").partition("\nnext\n")[2].splitlines()
    assert max(map(len, block)) <= columns
    assert any(line.endswith("measures it on held-out data") for line in block)
