"""The run directory: refused before anything is written, and never taken over in silence."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

import programs
import pytest
from command import PERCEPTRON, files, read_until, running, trainer
from programs import recipe

from trainer_core import hookimpl, plugin, requests
from trainer_core.cli.failures import Context, crashed
from trainer_core.config import load_config
from trainer_core.defaults.jsonl import JsonLines, last_reported
from trainer_core.directory import check_directory, differences, versions
from trainer_core.errors import RunError, UserError
from trainer_core.loop import fit
from trainer_core.run import Run
from trainer_core.stacks import write_stacks
from trainer_core.types import Data


@pytest.fixture
def done(tmp_path: Path) -> Path:
    """A run directory with one step in it."""
    directory = tmp_path / "run"
    fit(recipe(run={"directory": str(directory), "steps": 1}))
    return directory


def test_a_run_directory_holds_its_config_and_its_versions(done: Path) -> None:
    written = tomllib.loads((done / "config.toml").read_text())
    read = dict(load_config(done / "config.toml").table)
    del read["distributed"]  # where the processes were, for which a later command would wait
    assert written == read | {"run": written["run"]}
    assert written["run"]["steps"] == 1
    found = json.loads((done / "versions.json").read_text())
    assert {"plugins", "stack", "python", "trainer-core"} <= set(found)
    assert "jax" in found["stack"]


def test_another_config_is_refused_and_shown_key_by_key(done: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in done.rglob("*")}
    changed = recipe(run={"directory": str(done), "steps": 2}, schedule={"learning_rate": 0.2})
    with pytest.raises(UserError) as caught:
        fit(changed)
    message = str(caught.value)
    assert "schedule.learning_rate: 0.1 -> 0.2" in message
    assert "--accept-changes" in message
    assert "run.directory=PATH" in message, "as this one was given"
    assert "run.steps" not in message, "the number of steps may change"
    assert {path: path.stat().st_mtime_ns for path in done.rglob("*")} == before


def test_accepted_changes_go_on_with_the_new_values(done: Path) -> None:
    changed = recipe(run={"directory": str(done), "steps": 2}, schedule={"learning_rate": 0.2})
    fit(changed, accept_changes=True)
    assert tomllib.loads((done / "config.toml").read_text())["schedule"]["learning_rate"] == 0.2


def test_a_run_whose_checkpoints_are_gone_is_not_begun_again(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    tables = recipe(run={"directory": str(directory), "steps": 5})
    tables["checkpoint"] = {"use": "orbax", "every": 2}
    fit(tables)
    reported = directory / "metrics.jsonl"
    lines = reported.read_text()
    (directory / "saved.json").unlink()  # a plugin need not note what it saves
    away = (directory / "checkpoints").rename(tmp_path / "away")
    with pytest.raises(RunError, match=r"made 5 steps, .* checkpoint every 2, and has none: put"):
        fit(tables)
    assert reported.read_text() == lines
    away.rename(directory / "checkpoints")
    assert fit(tables).resumed_from == 5


@plugin
class Away:
    """Moves or removes the run directory while the run trains."""

    how: str = "moved"
    when: int = 3  # at the report of this step; 0: as the run is closed

    @hookimpl
    def report(self, run: Run, step: int) -> None:
        if step == self.when:
            self._take_away(run.directory)

    @hookimpl
    def close(self, run: Run) -> None:
        if not self.when:
            self._take_away(run.directory)

    def _take_away(self, directory: Path) -> None:
        elsewhere = directory.rename(directory.with_name("elsewhere"))
        if self.how == "replaced":
            directory.mkdir()
        elif self.how == "removed":
            shutil.rmtree(elsewhere, ignore_errors=True)


@pytest.mark.parametrize("how", ["moved", "removed", "replaced"])
@pytest.mark.parametrize(
    ("every", "when"),
    [
        pytest.param(4, 3, id="before a save"),
        pytest.param(100, 3, id="between two saves"),
        pytest.param(100, 0, id="at the end"),
    ],
)
def test_a_run_directory_that_is_taken_away_ends_the_run_and_is_not_made_anew(
    tmp_path: Path, how: str, every: int, when: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "_EVERY", 1e9 if every == 4 else 0.0)
    directory = tmp_path / "run"
    away = {"use": "test_directory:Away", "how": how, "when": when}
    tables = recipe(run={"directory": str(directory), "steps": 6}, plugins={"away": away})
    tables["checkpoint"] = {"use": "orbax", "every": every}
    with pytest.raises(RunError, match=r"run' was moved, removed or replaced .* put it back"):
        fit(tables)
    if when:  # else a save is under way, of which something may be left
        assert not list(directory.rglob("*"))
        assert how == "replaced" or not directory.exists()


@pytest.mark.parametrize("reporting", [True, False])
def test_nor_one_that_ended_before_its_second(tmp_path: Path, reporting: bool) -> None:
    directory = tmp_path / "run"
    tables = recipe(run={"directory": str(directory), "steps": 3}, checkpoint={"use": "orbax"})
    tables["plugins"] |= {} if reporting else {"jsonl": False}
    fit(tables)
    away = (directory / "checkpoints").rename(tmp_path / "away")
    before = files(directory) | {".lock": b""}  # which says since when
    with pytest.raises(RunError, match=r"had a checkpoint of step 3, as its saved\.json says, and"):
        fit(tables)
    assert files(directory) | {".lock": b""} == before
    away.rename(directory / "checkpoints")
    assert fit(tables).resumed_from == 3


def test_one_that_was_killed_before_its_first_was_written_is(tmp_path: Path) -> None:
    command = ["train", *PERCEPTRON, "run.directory=run", "run.eval_every=0"]
    endless = ["run.steps=1000000", "checkpoint.every=1000000", "run.log_every=1"]
    with running(*command, *endless, folder=tmp_path) as process:
        read_until(process, "step ")
        process.kill()
    reported, _ = last_reported(tmp_path / "run" / "metrics.jsonl")
    assert reported > 0
    again = trainer(*command, "run.steps=2", "checkpoint.every=2", folder=tmp_path)
    assert again.returncode == 0, again.stderr
    assert last_reported(tmp_path / "run" / "metrics.jsonl")[0] == 2


@pytest.mark.parametrize("is_noted", [True, False])
def test_lines_of_steps_whose_checkpoints_are_gone_are_named_and_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, is_noted: bool
) -> None:
    directory = tmp_path / "run"
    tables = recipe(run={"directory": str(directory), "steps": 7})
    tables["checkpoint"] = {"use": "orbax", "every": 2, "keep": 9}
    fit(tables)
    lost = (directory / "metrics.jsonl").read_text().splitlines()[2:]
    for step in (4, 6, 7):
        shutil.rmtree(directory / "checkpoints" / str(step))
    if not is_noted:  # by another plugin, or an older one
        (directory / "saved.json").unlink()
    assert fit(tables).resumed_from == 2
    [said] = [each.getMessage() for each in caplog.records]
    assert "reports steps up to 7" in said
    assert "is of step 2, from which the run goes on: what lies past it is now in" in said
    assert (directory / "metrics.jsonl.cut").read_text().splitlines() == lost


@pytest.mark.parametrize("reporting", ["not at all", "seldom"])
def test_checkpoints_that_are_gone_are_named_where_no_line_lies_past_what_is_left(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, reporting: str
) -> None:
    directory = tmp_path / "run"
    tables = recipe(run={"directory": str(directory), "steps": 6, "log_every": 4})
    tables["checkpoint"] = {"use": "orbax", "every": 4, "keep": 9}
    tables["plugins"] |= {"jsonl": False} if reporting == "not at all" else {}
    fit(tables)
    if reporting == "seldom":  # killed before its last step was reported
        reported = directory / "metrics.jsonl"
        reported.write_text(reported.read_text().splitlines(keepends=True)[0])
    shutil.rmtree(directory / "checkpoints" / "6")
    assert fit(tables).resumed_from == 4
    [said] = [each.getMessage() for each in caplog.records]
    assert said.startswith(f"{directory} had a checkpoint of step 6, as its saved.json says, and")
    assert "of step 4, from which the run goes on; where checkpoints are missing, stop" in said
    caplog.clear()
    assert fit(tables | {"run": tables["run"] | {"steps": 7}}).resumed_from == 6
    assert not caplog.records


def test_data_that_is_another_than_before_is_said_where_the_settings_are_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = recipe(run={"directory": str(tmp_path / "run"), "steps": 2})
    tables["checkpoint"] = {"use": "orbax"}

    def go_on(steps: int, rows: str, **data: Any) -> list[str]:
        caplog.clear()
        monkeypatch.setattr(Data, "summary", {"data": "rows", "size": rows})
        tables["run"]["steps"] = steps
        fit({**tables, "data": {**tables["data"], **data}}, accept_changes=bool(data))
        return [each.getMessage() for each in caplog.records]

    assert go_on(2, "7") == go_on(3, "7") == []
    [said] = go_on(4, "8")
    assert (
        f"than when {tmp_path / 'run'} was last trained: it was size 7, and is size 8; the" in said
    )
    assert go_on(5, "8") == []
    assert go_on(6, "9", batch_size=4) == []  # what was changed, and accepted


@pytest.mark.parametrize(
    "override", ["run.steps=9", "run.log_every=2", "plugins.jsonl=false", "run.name=other"]
)
def test_what_training_does_not_depend_on_may_change(done: Path, override: str) -> None:
    config = recipe(run={"directory": str(done), "steps": 1})
    check_directory(load_config(config, [override]), accept_changes=False)


def test_a_run_knows_which_of_its_keys_may_change(done: Path) -> None:
    run = programs.build(recipe(run={"directory": str(done), "steps": 1})).run
    keys = ["run.log_every", "plugins.progress.style", "plugins.logs.use", "model.terms"]
    assert [run.may_change(key) for key in keys] == [True, True, True, False]


def test_another_implementation_is_one_line_not_one_for_each_setting(done: Path) -> None:
    config = load_config(recipe(run={"directory": str(done)}), ["optimizer.use=sgd"])
    with pytest.raises(UserError) as caught:
        check_directory(config, accept_changes=False)
    assert 'optimizer.use: "adamw" -> "sgd"' in str(caught.value)
    assert "optimizer.beta1" not in str(caught.value)


def test_another_implementation_hides_no_change_of_a_setting_that_both_have() -> None:
    old = {"model": {"use": "nnx", "layers": 2, "remat": "full"}}
    new = {"model": {"use": "linen", "layers": 4, "rngs": ["dropout"]}}
    assert list(differences(old, new).values()) == [
        "model.layers: 2 -> 4",
        'model.use: "nnx" -> "linen"',
    ]


def test_a_table_that_is_no_longer_empty_is_told_by_its_keys() -> None:
    empty, filled = {"model": {"arguments": {}}}, {"model": {"arguments": {"width": 3}}}
    there, back = differences(empty, filled), differences(filled, empty)
    assert list(there.values()) == ["model.arguments.width: (not set) -> 3"]
    assert list(back.values()) == ["model.arguments.width: 3 -> (not set)"]


def test_a_directory_that_cannot_be_made_is_refused_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    config = recipe(run={"directory": str(tmp_path / "file" / "run")})
    with pytest.raises(UserError, match=r"file/run.*cannot be written.*run\.directory=PATH"):
        fit(config)


def test_a_directory_without_permission_is_refused(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        # Root may write anywhere but where the kernel itself says no.
        target = Path("/proc/run")
    else:
        target = tmp_path / "closed" / "run"
        target.parent.mkdir(mode=0o500)
    with pytest.raises(UserError, match="cannot be written") as caught:
        fit(recipe(run={"directory": str(target)}))
    assert str(target) in str(caught.value)


def test_a_config_that_cannot_be_read_is_never_overwritten(done: Path) -> None:
    (done / "config.toml").write_text("[run\n")
    with pytest.raises(UserError, match=r"config\.toml cannot be read"):
        fit(recipe(run={"directory": str(done), "steps": 2}))
    assert (done / "config.toml").read_text() == "[run\n"


def spoil(path: Path) -> bytes:
    """Flip a bit in the middle, so that it is no UTF-8 any more."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] |= 0x80
    path.write_bytes(content)
    return bytes(content)


@pytest.mark.parametrize("name", ["config.toml", "versions.json", "optimizer.json", "saved.json"])
def test_a_flipped_bit_in_a_record_is_told_with_its_file(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    directory = tmp_path / "run"
    config = recipe(run={"directory": str(directory), "steps": 1}, checkpoint={"use": "orbax"})
    fit(config)
    spoiled = spoil(directory / name)
    (directory / "metrics.jsonl").open("a").write('{"step": 2}\n')
    longer = {**config, "run": {**config["run"], "steps": 2}}
    if name == "optimizer.json":
        fit(longer)
        [said] = [each.getMessage() for each in caplog.records]
    else:
        with pytest.raises(UserError) as caught:
            fit(longer)
        said = str(caught.value)
        assert (directory / name).read_bytes() == spoiled
    assert f"{directory / name} cannot be read: 'utf-8' codec can't decode" in said


@pytest.mark.parametrize(
    "content", ["", "[]", "[" * 100_000, '{"devices": 7}', '{"devices": [7]}', '{"devices": {}}']
)
def test_a_record_of_versions_that_says_nothing_is_refused(done: Path, content: str) -> None:
    (done / "versions.json").write_text(content)
    with pytest.raises(UserError, match=r"run/versions\.json cannot be read: .*or delete it"):
        fit(recipe(run={"directory": str(done), "steps": 2}))
    (done / "versions.json").unlink()
    fit(recipe(run={"directory": str(done), "steps": 2}))


@pytest.mark.parametrize("content", ["", "[]", '{"gain": []}', '{"gain": 1}', "[" * 100_000])
def test_a_record_of_rules_that_says_nothing_is_told(
    tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = recipe(run={"directory": str(tmp_path / "run")}, checkpoint={"use": "orbax"})
    fit(config)
    (tmp_path / "run" / "optimizer.json").write_text(content)
    fit({**config, "run": {**config["run"], "steps": 5}})
    [said] = [each.getMessage() for each in caplog.records]
    assert "run/optimizer.json cannot be read: " in said


def test_damaged_lines_among_metrics_are_named_and_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = tmp_path / "run"
    path, aside = directory / "metrics.jsonl", directory / "metrics.jsonl.damaged"
    checkpoint = {"use": "orbax", "every": 6}
    config = recipe(run={"directory": str(directory), "steps": 6}, checkpoint=checkpoint)
    fit(config)
    one, two, three, four, five, six = path.read_bytes().splitlines(keepends=True)
    spoiled = b"\xff" + two[1:]
    nameless = three.replace(b'"step"', b'"stop"')
    cut, elsewhere = four[:19] + b"\n", five.replace(b'"step": 5', b'"step": 9')
    path.write_bytes(one + spoiled + nameless + cut + elsewhere + six + b'{"step": 7, "lo')
    fit({**config, "run": {**config["run"], "steps": 8}})
    steps = [json.loads(line)["step"] for line in path.read_text().splitlines()]
    assert steps == [1, 6, 7, 8]
    [said] = [each.getMessage() for each in caplog.records]
    assert said.startswith(f"damaged in {path}: lines 2, 3, 4, 5, now in metrics.jsonl.damaged")
    kept = ["\\xff" + two.decode()[1:], nameless.decode(), cut.decode(), elsewhere.decode()]
    assert aside.read_text() == "".join(kept)
    path.write_bytes(b"{}\n" + path.read_bytes())  # once more: what is there stays
    fit({**config, "run": {**config["run"], "steps": 9}})
    assert aside.read_text() == "".join([*kept, "{}\n"])


@pytest.mark.parametrize("when", ["it reports", "it is closed"])
def test_metrics_that_cannot_be_written_end_the_run_with_one_error_that_says_what_stands(
    tmp_path: Path, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "run"
    tables = recipe(run={"directory": str(directory), "steps": 6})
    tables["checkpoint"] = {"use": "orbax", "every": 2}

    class Full(io.StringIO):
        """A file on a disk that is full, but for a few lines."""

        def flush(self) -> None:
            if when == "it reports" and len(self.getvalue().splitlines()) > 5:
                raise OSError(errno.ENOSPC, "No space left on device")

        def close(self) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    start = JsonLines.start

    def started(self: JsonLines, run: Run, program: Any, step: int) -> None:
        start(self, run, program, step)
        self.file = Full()

    monkeypatch.setattr(JsonLines, "start", hookimpl(started))
    with pytest.raises(RunError) as caught:
        fit(tables)
    assert str(caught.value).startswith(
        f"{directory / 'metrics.jsonl'} cannot be written: No space left on device; once it can be"
    )
    assert re.search(r" the newest checkpoint, of step [246] or later$", str(caught.value))


def test_a_record_that_cannot_be_written_leaves_no_half_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match="No space left on device"):
        fit(recipe(run={"directory": str(tmp_path / "run"), "steps": 1}))
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


def test_what_lies_past_the_step_is_cut_without_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = tmp_path / "run"
    config = recipe(run={"directory": str(directory), "steps": 3}, checkpoint={"use": "orbax"})
    fit(config)
    with (directory / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "loss": 1.0}\n{"step": 5, "lo\n{"step": 6}\n{"st')
    fit({**config, "run": {**config["run"], "steps": 5}})
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5]
    assert caplog.records == []


def test_versions_name_every_plugin_of_the_run() -> None:
    config = load_config(recipe())
    assert set(versions(config)["plugins"]) == set(config.chosen)


def test_leaving_out_a_plugin_that_changes_training_is_a_change(tmp_path: Path) -> None:
    folder = {"run": {"directory": str(tmp_path / "run"), "steps": 1}}
    watching, changing = {"use": "models:StopAfter", "step": 9}, {"use": "models:Recorder"}
    fit(recipe(**folder, plugins={"watching": watching, "changing": changing}))
    check_directory(load_config(recipe(**folder, plugins={"changing": changing})), False)
    with pytest.raises(UserError, match=r'plugins\.changing\.use: "models:Recorder" -> \(not set'):
        check_directory(load_config(recipe(**folder, plugins={"watching": watching})), False)


def test_a_model_beside_its_recipe_is_found_from_any_folder(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "beside.py").write_text("from models import Perceptron\n")
    (home / "mine.toml").write_text(
        '[run]\nsteps = 1\n[model]\nuse = "beside:Perceptron"\n[data]\nuse = "models:Examples"\n'
    )
    assert trainer("train", "home/mine.toml", folder=tmp_path).returncode == 0
    measured = trainer("evaluate", str(tmp_path / "runs" / "mine"), folder=Path("/"))
    assert measured.returncode == 0, measured.stderr
    assert "eval loss" in measured.stdout


def test_nothing_is_written_through_a_link_in_a_run_directory(tmp_path: Path) -> None:
    """Somebody else's may hold links to any file of mine."""
    run, mine = tmp_path / "run", tmp_path / "mine"
    run.mkdir()
    mine.write_text("of mine")
    names = ["config.toml.new", "metrics.jsonl", "metrics.jsonl.new", "stacks-0.txt", "error.log"]
    for name in names:
        (run / name).symlink_to(mine)
    fit(recipe(run={"directory": str(run), "steps": 1}))
    assert write_stacks(run, 0) is not None
    crashed(RuntimeError("no fuel"), Context(run))
    assert mine.read_text() == "of mine"
    assert not any((run / name).is_symlink() for name in names)
    (run / ".lock").unlink()
    (run / ".lock").symlink_to(mine)
    with pytest.raises(UserError, match=r"\.lock cannot be written"):
        fit(recipe(run={"directory": str(run), "steps": 2}))
    assert mine.read_text() == "of mine"


def test_checkpoints_without_a_config_are_nobodys(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    config = recipe(run={"directory": str(directory), "steps": 1}, checkpoint={"use": "orbax"})
    fit(config)
    (directory / "config.toml").rename(tmp_path / "config.toml")
    for steps in (1, 2):
        config["run"]["steps"] = steps
        with pytest.raises(
            UserError, match=r"run has checkpoints \(steps 1\), and no config\.toml"
        ) as e:
            fit(config)
        assert "run.directory=PATH" in str(e.value)  # as it was given
    assert not (directory / "config.toml").exists()
    assert fit(config, accept_changes=True).resumed_from == 1


def test_a_name_that_gives_no_folder_is_said(tmp_path: Path) -> None:
    def notices(*overrides: str) -> str:
        return "\n".join(load_config(file, overrides).notices)

    file = tmp_path / "mine.toml"
    file.write_text('[run]\ndirectory = "here"\n')
    assert notices() == ""  # the recipe's own name is no wish
    said = notices("run.name=other")
    assert 'run.name = "other" (command line) names no folder' in said
    assert f'run.directory = "here" ({file}:2); for another one give run.directory=PATH' in said
    assert notices("run.name=other", "run.directory=there") == ""
