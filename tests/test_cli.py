"""The `trainer` command: what it prints, where, with which exit code, and how fast."""

from __future__ import annotations

import json
import re
import resource
import shlex
import shutil
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
from command import DECODER, PERCEPTRON, TRAINER, environment, files, trainer

from trainer_core.cli import run
from trainer_core.cli.commands import COMMANDS
from trainer_core.cli.failures import Context, crashed, refused
from trainer_core.config import load_config
from trainer_core.errors import UserError

QUICK = [*PERCEPTRON, "checkpoint.use=none", "run.steps=2", "run.eval_every=0"]
TEXT = "".join(f"def f{i}(x):\n    return x + {i}\n\n\n" for i in range(400))


@attrs.frozen
class Ran:
    """What a command returned, and wrote."""

    code: int
    out: str
    err: str


Command = Callable[..., Ran]


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """Run a command in this process, in the folder of this test."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> Ran:
        code = run(arguments)
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return call


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Ran]]:
    """A folder in which the decoder was trained twice, as two processes: new, and resumed.

    The compile cache is JAX's own affair, in a new folder, so that the second finds it filled.
    """
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text.txt").write_text(TEXT)
    variables = environment(
        XDG_CACHE_HOME=str(folder / "cache"), JAX_DISABLE_MOST_OPTIMIZATIONS="1"
    )
    for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
        variables.pop(name, None)
    ran = []
    for extra in (["run.steps=4"], ["run.steps=6", "--json"]):
        done = subprocess.run(
            [TRAINER, "train", *DECODER, "data.path=text.txt", *extra],
            cwd=folder,
            env=variables,
            capture_output=True,
            text=True,
            check=False,
        )
        ran.append(Ran(done.returncode, done.stdout, done.stderr))
    return folder, ran


@pytest.fixture
def in_trained(
    trained: tuple[Path, list[Ran]], quick_compiles: None, monkeypatch: pytest.MonkeyPatch
) -> Path:
    monkeypatch.chdir(trained[0])
    return trained[0]


def test_run_writes_nothing_to_stderr_neither_new_nor_with_compiled_programs_cached(
    trained: tuple[Path, list[Ran]],
) -> None:
    folder, ran = trained
    assert [(each.code, each.err) for each in ran] == [(0, ""), (0, "")]
    assert any((folder / "cache").rglob("*jit*"))


def test_first_run_says_what_it_is_how_it_went_and_what_it_writes(
    trained: tuple[Path, list[Ran]],
) -> None:
    text = trained[1][0].out
    for label in ("model", "batch", "devices", "data", "size", "optimizer", "run"):
        assert re.search(rf"^{label}  ", text, re.MULTILINE), text
    assert re.search(r"^model +nnx tiny, [\d,]+ parameters$", text, re.MULTILINE)
    assert "4 sequences, 128 tokens a step" in text
    assert re.search(r"^step 1/4  loss \d\.\d{4}  lr .*tokens/s$", text, re.MULTILINE)
    assert re.search(r"^step 4/4  loss \d\.\d{4}  eval \d\.\d{4}", text, re.MULTILINE)
    assert re.search(r"^done +4 steps in .*512 tokens", text, re.MULTILINE)
    assert re.search(r"^eval loss +\d\.\d{4}, perplexity [\d.]+, \d\.\d+ bits a byte$", text, re.M)
    assert re.search(r"^checkpoint +step 4 in runs/default/checkpoints$", text, re.MULTILINE)
    assert "what it writes" in text
    assert max(map(len, text.splitlines())) <= 100
    assert "\x1b" not in text


def test_json_is_one_object_a_line_as_in_the_metrics_file(
    trained: tuple[Path, list[Ran]],
) -> None:
    folder, ran = trained
    *steps, end = map(json.loads, ran[1].out.splitlines())
    written = (folder / "runs/default/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in written][-2:] == steps
    assert [step["step"] for step in steps] == [5, 6]
    assert end["event"] == "done"
    assert (end["directory"], end["step"], end["stopped"]) == ("runs/default", 6, "")
    assert end["resumed_from"] == 4
    assert end["metrics"]["eval_loss"] == steps[-1]["eval_loss"]


def test_every_command_that_the_closing_block_names_works(
    trained: tuple[Path, list[Ran]], in_trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    block = trained[1][0].out.partition("\nnext\n")[2]
    lines = [
        re.split("  +", line.strip())[0] for line in re.sub(r" \\\n +", " ", block).splitlines()
    ]
    commands = [shlex.split(line) for line in lines if line.startswith("trainer")]
    assert [words[1] for words in commands] == ["sample", "evaluate", "train"]
    for _, *arguments in commands:
        assert run(arguments) == 0, capsys.readouterr().err
        capsys.readouterr()


def test_finished_run_says_how_to_go_on_and_changes_nothing(
    in_trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(in_trained / "runs")
    lines = (in_trained / "runs/default/metrics.jsonl").read_text().splitlines()
    steps = json.loads(lines[-1])["step"]
    assert run(["train", *DECODER, "data.path=text.txt", f"run.steps={steps}"]) == 0
    text = capsys.readouterr().out
    assert f"finished    already: {steps} steps were made before" in text
    assert "eval loss" in text
    assert f"run.steps={2 * steps}" in text
    assert "run.name=NAME" in text
    after = files(in_trained / "runs")
    del before["default/.lock"], after["default/.lock"]  # who was there last
    assert after == before


def test_sample_and_evaluate_only_read_the_run(
    in_trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(in_trained / "runs")
    last = json.loads((in_trained / "runs/default/metrics.jsonl").read_text().splitlines()[-1])

    assert run(["evaluate", "runs/default", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["step"], found["batches"]) == (last["step"], 2)
    assert found["eval_loss"] == pytest.approx(last["eval_loss"], rel=1e-6)

    assert run(["evaluate", "runs/default", "run.eval_batches=3"]) == 0
    assert re.search(r"^data +3 of \d+ held-out batches, 384 tokens", capsys.readouterr().out, re.M)

    texts = []
    for options in (["--seed=1"], ["--seed=1"], ["--seed=2"], ["--temperature=0"]):
        assert run(["sample", "runs/default", "def f", "--length=40", *options]) == 0
        texts.append(capsys.readouterr().out)
    assert all(text.startswith("def f") for text in texts)
    assert texts[0] == texts[1]
    assert len(set(texts)) == 3
    assert files(in_trained / "runs") == before


def test_run_that_was_moved_can_still_be_read(
    in_trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(in_trained / "runs/default", tmp_path / "moved")
    assert run(["sample", str(tmp_path / "moved"), "x", "--length=3"]) == 0
    assert capsys.readouterr().out.startswith("x")


def test_quiet_prints_nothing_and_no_style_leaves_a_trace_of_another(command: Command) -> None:
    assert command("train", *QUICK, "--quiet") == Ran(0, "", "")
    ended = command("train", *QUICK, "run.name=other", "--json")
    assert {line.partition(" models:")[0] for line in ended.err.splitlines()} == {"note: imports"}
    for line in ended.out.splitlines():
        json.loads(line)


def test_notices_of_the_config_are_shown(command: Command) -> None:
    ran = command("train", *QUICK, "optimizer.beta1=0.8", "optimizer.use=sgd")
    assert ran.code == 0
    assert "note: [optimizer] beta1 (command line) is left out: sgd has no such setting" in ran.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "there is no command 'trian' (did you mean 'train'?)"),
        (["train", "--jsn"], "unrecognized arguments: --jsn; `trainer train --help` shows"),
        (["train", "steps"], "'steps' is neither KEY=VALUE, such as run.steps=100, nor a recipe"),
        (["train", "no.toml"], "there is no recipe no.toml"),
        (["train", "a.toml", "b.toml"], "there can be one recipe, and 'a.toml' and 'b.toml'"),
        (["train", "."], "'.' is a folder; give a recipe"),
        (["train", "run.steps=many"], '[run] steps = "many" (command line): expected a whole'),
        (["explain", "confg"], "nothing about 'confg' to explain (did you mean 'config'?)"),
        (["explain"], "the following arguments are required: TOPIC;"),
        (["evaluate"], "the following arguments are required: RUN;"),
        (["plugins", "adamW"], "no installed package offers 'adamW' (did you mean 'adamw'?)"),
        (["sample", "nowhere"], "nowhere does not exist"),
        (["sample", "nowhere", "--length=0"], "argument --length: 0 is less than 1"),
        (["sample", "nowhere", "--temperature=-1"], "-1 is not a number from 0 upwards"),
        (["sample", "nowhere", "--seed=x"], "argument --seed: 'x' is no whole number"),
        (["evaluate", "."], ". is no run directory: it has no config.toml"),
    ],
)
def test_mistake_is_one_message_on_stderr_and_exit_code_2(
    arguments: list[str], message: str, command: Command, tmp_path: Path
) -> None:
    ran = command(*arguments)
    assert ran.code == 2
    assert ran.out == ""
    assert ran.err.startswith("error: ")
    assert message in ran.err
    assert "Traceback" not in ran.err
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_no_recipe_is_not_taken_for_an_empty_one(
    command: Command, tmp_path: Path
) -> None:
    (tmp_path / "t.txt").touch()
    ran = command("train", "t.txt")
    assert (ran.code, ran.out) == (2, "")
    assert "error: 't.txt' is no recipe, which is a .toml file" in ran.err
    assert [each.name for each in tmp_path.iterdir()] == ["t.txt"]


@pytest.mark.parametrize(
    ("use", "said"),
    [
        ("models:Forgetful", 'has no checkpoint yet ([checkpoint] use = "models:Forgetful"); it'),
        ("none", 'has no checkpoint, and will have none: [checkpoint] use = "none" (runs/default/'),
    ],
)
def test_run_without_a_checkpoint_cannot_be_read_and_says_so(
    use: str, said: str, command: Command
) -> None:
    assert command("train", *QUICK, f"checkpoint.use={use}", "--quiet").code == 0
    for name in ("sample", "evaluate"):
        ran = command(name, "runs/default")
        assert (ran.code, ran.out) == (2, "")
        assert f"runs/default {said}" in ran.err
    # It is found where somebody looks beside it.
    assert "the newest runs are: runs/default" in command("sample", "runs/defualt").err


def test_damaged_checkpoints_that_are_read_say_nothing_of_training(
    command: Command, tmp_path: Path
) -> None:
    training = "To train from the start"
    assert command("train", *QUICK, "checkpoint.use=orbax", "--quiet").code == 0
    shutil.rmtree(tmp_path / "runs/default/checkpoints/2/state")
    read = command("evaluate", "runs/default")
    assert (read.code, read.out) == (1, "")
    assert read.err.endswith("can be trusted (steps 2); nothing was deleted\n")
    assert training not in read.err
    assert training in command("train", *QUICK, "checkpoint.use=orbax", "run.steps=3").err


@pytest.mark.parametrize(("end", "kind"), [(refused, UserError), (crashed, KeyError)])
def test_what_process_0_says_too_is_said_in_short(
    end: Any, kind: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    error = kind("the recipes differ, " * 9 + "\n  and so on")
    error.is_told = True
    assert end(error, Context()) == (2 if kind is UserError else 1)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: process 0 says why: ")
    assert "the recipes differ" in line
    assert line.endswith(" …")
    assert len(line) < 120


FAILING = """
from trainer_core import hookimpl, plugin, setting

@plugin
class Failing:
    at: str = setting("report")

    @hookimpl(wrapper=True)
    def build_schedule(self):
        schedule = yield
        self.fail("build_schedule")
        return schedule

    @hookimpl
    def report(self, step):
        self.fail("report")

    def fail(self, at):
        if at == self.at:
            raise KeyError("the plugin's own mistake")
"""


@pytest.fixture
def failing(tmp_path: Path) -> list[str]:
    (tmp_path / "failing.py").write_text(FAILING)
    return [*QUICK, "plugins.mine.use=failing:Failing"]


def test_hook_that_raises_is_named_with_its_plugin_and_the_run_fails(
    command: Command, failing: list[str], tmp_path: Path
) -> None:
    ran = command("train", *failing)
    assert ran.code == 1
    error = ran.err.splitlines()
    assert error[0] == 'error: KeyError: "the plugin\'s own mistake"'
    assert error[1].startswith("  raised in the hook report of [plugins.mine] failing:Failing")
    assert "Traceback" not in ran.err
    log = (tmp_path / "runs/default/error.log").read_text()
    assert "Traceback" in log
    assert "failing.py" in log


def test_traceback_is_shown_where_it_is_asked_for_and_else_its_innermost_frame(
    command: Command, failing: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "Traceback" in command("train", *failing, "--traceback").err
    assert not (tmp_path / "runs/default/error.log").exists()
    early = command("train", *failing, "plugins.mine.at=build_schedule", "run.name=early")
    assert early.code == 1
    assert "raised in the hook build_schedule of [plugins.mine]" in early.err
    assert "Traceback" not in early.err
    assert re.search(r"at .*failing\.py:\d+, in fail; --traceback shows", early.err)
    assert not (tmp_path / "runs/early").exists()
    monkeypatch.setenv("TRAINER_TRACEBACK", "1")
    assert "Traceback" in command("train", "run.steps=x").err


# Found only when jax is there, by the devices, the model or the data: still with the line.
LATE = {
    "a mesh of more devices than there are": (
        "[shard]\nmesh = {data = 64}\n",
        2,
        "needs 64 devices",
    ),
    "a mesh that no number of devices fits": (
        "[shard]\nmesh = {data = -1, fsdp = -1}\n",
        2,
        "only one axis may be -1",
    ),
    "a rule for no axis": ('[shard.rules]\nembd = "fsdp"\n', 1, "did you mean 'embed'?"),
    "a rule to no mesh axis": ('[shard]\nrules = {embed = "fdsp"}\n', 2, "did you mean 'fsdp'?"),
    "too few words": ("[model]\nvocab = 100\n", 2, "set model.vocab="),
    "longer than the model's context": ("[model]\ncontext = 64\n", 2, "set data.length=64"),
    "too little text": ('[data]\npath = "short.txt"\n', 2, "too few for one window"),
    "no window to hold out": ("[data]\nheld_out = 1e-9\n", 2, "give a larger one"),
    "a bare mean": ('[model]\nuse = "mean:Mean"\n', 2, "trainer_core.Term(sum, weight)"),
    "no such argument": (
        '[optimizer]\nuse = "optax"\ntransform = "optax:adam"\narguments = {b3 = 1.0}\n',
        3,
        "unexpected keyword argument 'b3'",
    ),
}
MEAN = """
import models
from trainer_core import hookimpl

class Mean(models.Perceptron):
    def losses(self, *args):
        terms, buffers = super().losses(*args)
        return {name: term.sum for name, term in terms.items()}, buffers
"""


@pytest.mark.parametrize("case", LATE)
def test_a_mistake_that_needs_jax_to_be_found_names_its_line_too(
    command: Command, tmp_path: Path, case: str
) -> None:
    text, line, said = LATE[case]
    (tmp_path / "short.txt").write_text("short")
    (tmp_path / "mean.py").write_text(MEAN)
    (tmp_path / "recipe.toml").write_text(text)
    extra = ["data.use=models:Examples"] if "mean" in text else []
    ran = command("train", "recipe.toml", "checkpoint.use=none", *extra)
    assert ran.code == 2, ran.err
    assert said in ran.err
    assert f"recipe.toml:{line}" in ran.err
    assert "Traceback" not in ran.err
    assert not (tmp_path / "runs").exists()


def test_data_without_a_tokenizer_trains_and_is_not_written_from(
    command: Command, tmp_path: Path
) -> None:
    (tmp_path / "numbers_data.py").write_text(NUMBERS)
    small = ["model.layers=1", "model.width=32", "model.heads=2", "run.steps=1"]
    own = [*small, "data.use=numbers_data:Numbers", "checkpoint.every=1"]
    ran = command("train", *own)
    assert (ran.code, ran.err) == (0, "")
    assert "checkpoint" in ran.out
    assert "what it writes" not in ran.out
    written = command("sample", "runs/default")
    assert written.code == 2
    assert "this data holds no text" in written.err
    beyond = command("train", *own, "data.largest=999", "run.name=beyond")
    assert beyond.code == 2
    assert "tokens up to 999" in beyond.err


NUMBERS = """
import numpy as np
from trainer_core import Data, hookimpl, plugin, setting

@plugin
class Numbers(Data):
    batch_size: int = setting(2)
    largest: int = setting(9)

    @hookimpl
    def build_data(self):
        return self

    def batch(self, step):
        tokens = np.full((self.batch_size, 8), self.largest, np.int32)
        return {"tokens": tokens, "targets": tokens, "weights": np.ones((2, 8), np.float32)}
"""


def test_run_that_fails_exits_1_with_its_message_alone(command: Command) -> None:
    ran = command("train", *QUICK, "data.nan_loss=[0]", "step.max_skipped=1", "--quiet")
    assert ran.code == 1
    assert ran.err.startswith("error: stopped at step 1")
    assert len(ran.err.splitlines()) == 1


def test_run_goes_on_where_nobody_reads_its_output(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [TRAINER, "train", *QUICK],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    assert process.wait() == 0
    assert len((tmp_path / "runs/default/metrics.jsonl").read_text().splitlines()) == 2


def test_reader_of_a_table_may_stop_reading(tmp_path: Path) -> None:
    done = subprocess.run(
        f"{shlex.quote(TRAINER)} explain config | head -n 1",
        shell=True,
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""


def test_help_tables_and_config_errors_import_no_jax(tmp_path: Path) -> None:
    program = """
        import sys
        from trainer_core.cli import run
        commands = [["--help"], ["train", "--help"], ["plugins"], ["plugins", "--check"],
            ["plugins", "adamw"], ["plugins", "nnx"], ["explain", "config"], ["explain", "hooks"],
            ["train", "no.toml"], ["train", "run.steps=x"], ["train", "modle.layers=2"],
            ["train", "model.use=nxx"],
            ["sample", "nowhere"], ["evaluate", "nowhere"]]
        for command in commands:
            run(command)
            loaded = {"jax", "flax", "orbax"} & set(sys.modules)
            assert not loaded, (command, loaded)
        run(["--help"])
        print("none of them")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.endswith("none of them\n"), done.stderr


def test_help_takes_less_than_three_tenths_of_a_second(tmp_path: Path) -> None:
    # Of the processor: by the clock it depends on what else the machine does.
    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert trainer("--help", folder=tmp_path).returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(5)) < 0.3


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_fits_100_columns_and_names_every_option(name: str, command: Command) -> None:
    ran = command(*filter(None, [name]), "--help")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith(f"usage: trainer {name}".rstrip())
    assert max(map(len, ran.out.splitlines())) <= 100
    if not name:
        assert all(each in ran.out for each in COMMANDS)
    else:
        assert "examples" in ran.out
        assert "--traceback" in ran.out


def test_options_and_settings_stand_in_any_order(command: Command) -> None:
    ran = command("train", *QUICK[:1], "--json", *QUICK[1:], "--accept-changes")
    assert ran.code == 0, ran.err


def test_plugins_lists_what_is_registered_without_importing_it(
    command: Command, foreign: Callable[..., None]
) -> None:
    foreign("trainer-broken", {"trainer.optimizers": {"broken": "no_such_module:X"}})
    ran = command("plugins")
    assert (ran.code, ran.err) == (0, "")
    rows = [line.split() for line in ran.out.splitlines()]
    assert ["slot", "name", "distribution", "version", "state"] in rows
    assert ["optimizer", "broken", "trainer-broken", "3.2.1"] in rows
    assert ["model", "nnx", "trainer-nnx-plugin"] in [row[:3] for row in rows]
    defaults = {row[0] for row in rows if row and row[-1] == "default"}
    assert defaults >= {"model", "optimizer", "schedule", "data", "shard", "step", "checkpoint"}
    assert max(map(len, ran.out.splitlines())) <= 100


def test_plugins_check_shows_what_is_broken_and_why(
    command: Command, foreign: Callable[..., None], tmp_path: Path
) -> None:
    (tmp_path / "raising.py").write_text("raise OSError('no such library')\n")
    (tmp_path / "idle.py").write_text("from trainer_core import plugin\n@plugin\nclass X: ...\n")
    entries = {"missing": "no_such_module:X", "raising": "raising:X", "idle": "idle:X"}
    foreign("trainer-broken", {"trainer.optimizers": entries})
    ran = command("plugins", "--check", "--json")
    found = {each["name"]: each for each in json.loads(ran.out)["plugins"]}
    assert found["adamw"]["state"] == "ok, default"
    assert found["sgd"]["state"] == "ok"
    for name, cause in (
        ("missing", "no module 'no_such_module'"),
        ("raising", "OSError: no such library"),
        ("idle", "answers no build_optimizer"),
    ):
        assert found[name]["state"] == "broken"
        assert cause in found[name]["error"]
    table = command("plugins", "--check").out
    assert "OSError: no such library" in table
    assert re.search(r"^optimizer +raising +trainer-broken +3\.2\.1 +broken$", table, re.MULTILINE)


def test_plugins_says_how_to_choose_among_two_of_one_name(
    command: Command, foreign: Callable[..., None]
) -> None:
    foreign("trainer-other", {"trainer.optimizers": {"sgd": "other:SGD"}})
    out = command("plugins").out
    assert 'use "trainer-other:sgd"' in out
    assert 'use "trainer-core:sgd"' in out
    shown = command("plugins", "trainer-core:sgd").out
    assert "momentum" in shown


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that installs a distribution with these entry points."""

    def install(name: str, groups: dict[str, dict[str, str]]) -> None:
        folder = tmp_path / f"{name.replace('-', '_')}-3.2.1.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 3.2.1\n")
        (folder / "entry_points.txt").write_text(
            "".join(
                f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in entries.items())
                for group, entries in groups.items()
            )
        )

    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield install
    for name in (set(sys.modules) - before) & {"raising", "idle"}:
        del sys.modules[name]


def test_settings_of_a_plugin_are_shown_with_type_default_unit_and_meaning(
    command: Command,
) -> None:
    out = command("plugins", "gradient").out
    assert out.startswith('[step] use = "gradient"  trainer-core ')
    assert re.search(r"^ +max_skipped +integer +10 +steps +stop the run after", out, re.MULTILINE)
    assert re.search(
        r"^ +layers +integer +\d+ +layers ", command("plugins", "nnx").out, re.MULTILINE
    )
    assert re.search(r"^ +transform +string +needed ", command("plugins", "optax").out, re.M)
    assert command("plugins", "none").out.rstrip().endswith("it has no settings")
    settings = json.loads(command("plugins", "sgd", "--json").out)["plugins"][0]["settings"]
    assert settings[0] == {
        "key": "momentum",
        "type": "number",
        "default": "0.9",
        "unit": "",
        "meaning": "decay of the velocity; 0: none",
    }


def test_settings_of_a_class_of_ones_own_are_shown_too(
    command: Command, failing: list[str]
) -> None:
    assert re.search(r'^  at +string +"report"', command("plugins", "failing:Failing").out, re.M)


def test_explain_config_shows_every_key_with_value_origin_owner_and_meaning(
    command: Command, tmp_path: Path
) -> None:
    (tmp_path / "recipe.toml").write_text('[optimizer]\nuse = "sgd"\nmomentum = 0.5\n')
    settings = ["recipe.toml", "model.layers=2", "plugins.jsonl=false"]
    ran = command("explain", "config", *settings)
    assert (ran.code, ran.err) == (0, "")
    lines = ran.out.splitlines()
    assert max(map(len, lines)) <= 100
    assert re.search(r"^\[optimizer\] +trainer-core \d", ran.out, re.MULTILINE)
    assert re.search(r"^  momentum +0\.5 +recipe\.toml:3 +decay of", ran.out, re.MULTILINE)
    assert re.search(r"^  layers +2 layers +command line +blocks of", ran.out, re.MULTILINE)
    assert re.search(r"^  width +\d+ channels +preset tiny ", ran.out, re.MULTILINE)
    assert re.search(r"^  seed +0 +default ", ran.out, re.MULTILINE)
    assert "[plugins.jsonl]  switched off (command line)" in ran.out

    found = json.loads(command("explain", "config", *settings, "--json").out)
    config = load_config(Path("recipe.toml"), settings[1:])
    for table, values in config.table.items():
        if table != "plugins":
            for key, value in values.items():
                assert found[f"{table}.{key}"]["value"] == value
                assert found[f"{table}.{key}"]["from"] == config.origins[f"{table}.{key}"]
                assert found[f"{table}.{key}"]["meaning"]
    assert found["data.path"]["value"] is None
    assert not (tmp_path / "runs").exists()


def test_resolved_config_of_a_run_is_a_recipe_that_explains_itself(
    in_trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = "runs/default/config.toml"
    assert run(["explain", "config", path, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    table: dict[str, Any] = tomllib.loads(Path(path).read_text())
    assert found["model.layers"]["value"] == table["model"]["layers"]
    assert found["model.layers"]["from"].startswith(path)


def test_version_is_that_of_the_distribution(command: Command) -> None:
    assert re.fullmatch(r"trainer-core \d+\.\d+\.\d+\n", command("--version").out)
