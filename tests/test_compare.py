"""`trainer compare`: where two runs part, to the step and to the path; and what it refuses."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import programs
import pytest
import tomli_w
from command import TESTS, files

from trainer_core import fit
from trainer_core.cli import run as trainer

pytest.importorskip("trainer_checkpoint")

import orbax.checkpoint as ocp
from trainer_checkpoint import stored
from trainer_checkpoint.comparing import report as comparing
from trainer_checkpoint.comparing.metrics import chosen
from trainer_checkpoint.comparing.side import Side

STEPS = 4


def recipe(**tables: Any) -> dict[str, Any]:
    own = {
        "run": {"steps": STEPS, "eval_batches": 0},
        "optimizer": {"use": "adamw"},
        "schedule": {"use": "cosine", "learning_rate": 0.1, "warmup": 0},
        "checkpoint": {"use": "orbax", "every": 1, "keep": 9},
    }
    tables = {name: {**own.get(name, {}), **tables.get(name, {})} for name in {**own, **tables}}
    return programs.recipe(**tables)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, quick_compiles: None) -> Path:
    """A folder with three runs; `a` and `same` have one recipe."""
    folder = tmp_path_factory.mktemp("compared")
    for name, decay in (("a", 0.1), ("same", 0.1), ("decayed", 0.2)):
        run = {"directory": str(folder / name)}
        fit(recipe(run=run, optimizer={"weight_decay": decay}))
    return folder


def part_of_a(name: str, reported: Sequence[int], saved: Sequence[int], **other: Any) -> str:
    """Write a run that has a part of `a`, and other numbers in each line."""
    shutil.copytree("a", name)
    for step in set(range(1, STEPS + 1)) - set(saved):
        shutil.rmtree(Path(name, f"checkpoints/{step}"))
    kept = [json.dumps(line | other) for line in metrics("a") if line["step"] in reported]
    Path(name, "metrics.jsonl").write_text("".join(f"{line}\n" for line in kept))
    return name


@pytest.fixture(autouse=True)
def _here(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for run in trained.iterdir():
        (tmp_path / run.name).symlink_to(run)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def compare(capsys: Any) -> Any:
    """Return a function that gives the exit code and what is printed; as JSON where it is."""

    def call(*arguments: str) -> tuple[int, Any]:
        code = trainer(["compare", *arguments])
        out, err = capsys.readouterr()
        return code, json.loads(out) if "--json" in arguments and out else out + err

    return call


def test_the_same_run_twice_is_equal_bit_for_bit(compare: Any) -> None:
    code, page = compare("a", "same")
    assert code == 0
    assert page.endswith("result   equal, bit for bit\n")
    assert "metrics  equal at 4 steps: loss, grad_norm, learning_rate, " in page
    arrays = len(stored.look(Path("a")).leaves)
    assert all(f"state {step}  equal: {arrays} arrays" in page for step in range(1, STEPS + 1))
    assert "setting" not in page
    assert "\x1b" not in page


def test_the_first_number_and_the_first_path_that_differ_are_named(compare: Any) -> None:
    # Decay moves only what is decayed in the first step; the loss sees it in the second.
    code, found = compare("a", "decayed", "--json")
    assert code == 1
    assert found["settings"] == {"optimizer.weight_decay": ["0.1", "0.2"]}
    first = found["first_difference"]
    assert (first["step"], first["metric"]) == (2, "loss")
    losses = [metrics(run)[1]["loss"] for run in ("a", "decayed")]
    assert [first["a"], first["b"]] == losses
    assert first["difference"] == abs(losses[0] - losses[1]) > 0
    assert found["steps"][0]["grad_norm"]["difference"] == 0
    (state,) = found["states"]  # no later step: all of them differ then
    assert (state["step"], state["differing"]) == (1, 2)
    path = "params/hidden/kernel"
    kernels = [
        stored.read(stored.look(Path(run, "checkpoints/1")))[path] for run in ("a", "decayed")
    ]
    apart = np.max(np.abs(kernels[0].astype(np.float64) - kernels[1]))
    assert state["first"] == {"path": path, "difference": apart}

    code, page = compare("a", "decayed")
    assert code == 1
    assert "step 2 is the first that differs: loss" in page
    assert f"{path} is the first path that differs, by at most" in " ".join(page.split())
    assert "trainer checkpoint diff a/checkpoints/1 decayed/checkpoints/1" in page
    assert "result      they differ\n" in page
    assert all(len(line) <= 100 for line in page.splitlines())


def test_a_tolerance_decides_and_what_is_left_is_said(compare: Any) -> None:
    runs = ["a", "decayed", "--steps", "2", "--tolerance"]
    code, found = compare(*runs, "1e9", "--json")
    assert code == 0
    assert len(found["states"]) == 2
    largest = found["largest_difference"]
    code, page = compare(*runs, repr(largest))
    assert code == 0
    assert f"equal within {largest:g}: at most {largest:.1e} apart" in page
    assert compare(*runs, repr(math.nextafter(largest, 0)))[0] == 1


def test_only_steps_that_both_have_are_compared(compare: Any) -> None:
    code, found = compare("a", part_of_a("seldom", reported=[3, 4], saved=[2, 4]), "--json")
    assert code == 0
    assert [each["step"] for each in found["steps"]] == [3, 4]
    assert [each["step"] for each in found["states"]] == [2, 4]
    code, found = compare("a", "decayed", "--steps", "1", "--json")
    assert [each["step"] for each in found["steps"]] == [1]
    assert found["first_difference"] is None
    assert code == 1  # by the state after it


def test_runs_that_report_no_step_in_common_are_compared_by_their_states(compare: Any) -> None:
    code, page = compare("a", part_of_a("begun", reported=[], saved=[2]))
    assert code == 0
    assert "metrics  not compared: there is no step that both reported" in page
    assert "state 2  equal: " in page


def test_a_run_without_checkpoints_is_compared_by_its_numbers(compare: Any) -> None:
    code, page = compare("a", part_of_a("unsaved", reported=[1, 2], saved=[]))
    assert code == 0
    assert page.splitlines()[1] == "B  unsaved, 2 of 4 steps"
    assert re.search("only in A +steps 3, 4", page)
    assert re.search("states +not compared: no checkpoint of these steps in unsaved", page)


def test_what_is_not_a_number_equals_itself_and_nothing_else(compare: Any) -> None:
    spoiled = part_of_a("spoiled", reported=[2, 3], saved=[], loss="nan")
    assert compare(spoiled, spoiled)[0] == 0
    code, found = compare("a", spoiled, "--json")
    assert code == 1
    first = found["first_difference"]
    assert (first["step"], first["b"], first["difference"]) == (2, "nan", "inf")
    assert found["largest_difference"] == "inf"


def test_a_number_that_one_run_alone_reports_is_named(compare: Any) -> None:
    code, page = compare("a", part_of_a("more", reported=[2, 3], saved=[], accuracy=0.5))
    assert code == 0
    assert "only in B  accuracy" in page


def test_a_log_of_other_code_is_compared_by_its_numbers(compare: Any) -> None:
    lines = [{"step": line["step"], "loss": line["loss"]} for line in metrics("a")]
    Path("old.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    code, page = compare("old.jsonl", "decayed", "--steps", "1")
    assert code == 0
    assert page.startswith("A  old.jsonl, 1 step\n")
    assert "setting" not in page
    assert "metrics    equal at 1 step: loss\n" in page
    code, found = compare("old.jsonl", "decayed", "--json")
    assert (code, found["first_difference"]["step"]) == (1, 2)


def test_zeros_of_another_sign_are_equal_and_not_bit_for_bit(tmp_path: Path) -> None:
    sides = []
    for name, zero in (("plus", 0.0), ("minus", -0.0)):
        with ocp.PyTreeCheckpointer() as checkpointer:
            checkpointer.save(
                tmp_path / name / "checkpoints/1", {"params": {"w": np.full(2, zero)}}
            )
        sides.append(Side(name=name, directory=tmp_path / name, metrics={}, saved=(1,)))
    report = comparing.compare(*sides, tolerance=0.0)
    assert not report.differ
    assert not report.has_same_bits
    assert comparing.compare(sides[0], sides[0], tolerance=0.0).has_same_bits


def test_what_the_clock_says_is_not_compared(compare: Any) -> None:
    slow = part_of_a("slow", reported=[2], saved=[], seconds=1e3, tokens_per_second=1.0)
    assert compare("a", slow)[0] == 0


def test_a_torn_last_line_is_left_out_and_any_other_is_an_error(compare: Any) -> None:
    path = Path(part_of_a("torn", reported=[1, 2, 3], saved=[]), "metrics.jsonl")
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], lines[2][:20]]))
    code, found = compare("a", "torn", "--json")
    assert code == 0
    assert [each["step"] for each in found["steps"]] == [1, 2]
    path.write_text("\n".join([lines[0][:20], *lines[1:]]))
    code, said = compare("a", "torn")
    assert code == 2
    assert "metrics.jsonl:1 is no line of metrics" in said


def test_lines_of_one_step_are_put_together_and_must_agree(compare: Any) -> None:
    """Logs of other code often have the loss and the evaluation on lines of their own."""
    for name, loss in (("x", 2.0), ("y", 9.0)):
        Path(f"{name}.jsonl").write_text(
            f'{{"step": 1, "loss": {loss}}}\n{{"step": 1, "eval_loss": 3.0}}\n'
        )
    assert compare("x.jsonl", "x.jsonl")[0] == 0
    assert compare("x.jsonl", "y.jsonl")[0] == 1
    Path("y.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 1, "loss": 2.5}\n')
    code, said = compare("x.jsonl", "y.jsonl")
    assert code == 2
    assert "y.jsonl:2 says loss = 2.5 of step 1, and a line above 2.0" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "the following arguments are required: A, B;"),
        (["a", "run.steps=3"], "compare takes two runs, logs or recipes, not 1"),
        (["a", "."], "is no run directory: it has no config.toml"),
        (["a", "none"], "none does not exist; the newest runs are"),
        (["a", "none.toml"], "there is no recipe none.toml"),
        (["a", "same", "run.steps=3"], "run.steps=3 is for a recipe that is trained here"),
        (["a", "same", "--into", "new"], "--into is for a recipe that is trained here"),
        (["a", "own.toml", "--into", "same"], "same exists already"),
        (["a", "own.toml", "model.dpth=1"], "did you mean 'depth'?"),
        (["a", "empty"], "it made no step yet"),
        (["first", "last"], "; last has no steps, and saved step 4"),
        (["a", "other.jsonl"], "other.jsonl has step 1 (train_loss)"),
        (["a", "none.jsonl"], "there is no log none.jsonl"),
        (["a", "same", "--steps", "0"], "0 is less than 1"),
        (["a", "same", "--tolerance", "x"], "'x' is no number"),
    ],
)
def test_mistakes(
    arguments: list[str], said: str, compare: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", TESTS)
    Path("own.toml").write_text(tomli_w.dumps(recipe()))
    part_of_a("first", reported=[1, 2], saved=[])
    part_of_a("last", reported=[], saved=[4])
    Path("other.jsonl").write_text('{"step": 1, "train_loss": 5.5, "seconds": 1.0}\n')
    Path("empty").mkdir()
    shutil.copy("a/config.toml", "empty")
    before = files(Path())
    code, printed = compare(*arguments)
    assert code == 2
    assert said in printed
    assert files(Path()) == before


def test_a_recipe_is_trained_as_the_whole_run_would_be(
    compare: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Three of four steps: a cosine that fell until the third would be another.
    monkeypatch.setenv("PYTHONPATH", TESTS)
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # as `a` was compiled
    own = tmp_path / "own.toml"
    own.write_text(tomli_w.dumps(recipe(run={"log_every": 2, "eval_every": 2})))
    kept = tmp_path / "kept"
    code, found = compare("a", str(own), "--steps", "3", "--into", str(kept), "--json")
    assert code == 0, found
    assert found["largest_difference"] == 0
    assert [each["step"] for each in found["steps"]] == [1, 2, 3]
    assert [each["step"] for each in found["states"]] == [1, 2, 3]
    assert [path.name for path in kept.iterdir()] == ["B"]
    assert len(metrics(kept / "B")) == 3
    code, page = compare("a", str(kept / "B"))  # and it can be read again
    assert code == 0, page


@pytest.mark.parametrize("last", [1, 2, 3])
def test_a_run_stops_after_the_step_it_was_told(last: int) -> None:
    assert fit(stopping_at(last)).step == last


def test_a_run_that_was_stopped_so_goes_on_to_its_end() -> None:
    shutil.copytree("a", "run")
    shutil.rmtree("run/checkpoints/4")
    assert fit(stopping_at(3)).step == STEPS


def stopping_at(step: int) -> dict[str, Any]:
    plugin = {"use": "trainer_checkpoint.comparing.stop_at:StopAt", "step": step}
    return recipe(
        run={"directory": "run", "eval_every": 2},
        checkpoint={"every": 2},
        plugins={"progress": False, "stop_at": plugin},
    )


def test_a_page_shows_a_long_run_in_few_lines_and_around_the_first_difference_all() -> None:
    steps = list(range(1, 1001))
    shown = chosen(steps, 555, 20)
    assert {1, 554, 555, 556, 1000} <= set(shown)
    assert len(shown) <= 23
    assert chosen(steps[:7], 3, 20) == steps[:7]
    assert {1, 2, 1000} <= set(chosen(steps, 1, 20))


def metrics(run: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]
