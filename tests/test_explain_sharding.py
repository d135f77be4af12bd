"""`trainer explain sharding`: on a terminal, as JSON, as a drawing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trainer_core import cli
from trainer_core.terminal.figures import size

pytestmark = [pytest.mark.usefixtures("quick_compiles"), pytest.mark.eight_devices]
SPREAD = ["shard.mesh={data=2,fsdp=4}"]


def test_it_fits_a_hundred_columns_and_says_what_a_device_holds(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.run(["explain", "sharding", *SPREAD]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 100
    assert "mesh      data 2 x fsdp 4 x tensor 1, 8 cpu devices\n" in shown
    assert "layers embed=fsdp mlp" in shown
    # 426,752 parameters of 4 bytes, of which only the norms' 768 are not spread over fsdp.
    whole, norms = 4 * 426_752, 4 * (128 + 2 * (2 * 32 + 2 * 128))
    held = (whole - norms) // 4 + norms
    assert f"parameters  {size(whole)}, {size(held)} on each device" in shown


def test_json_has_every_array(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["explain", "sharding", "--json", *SPREAD]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["mesh"] == {"data": 2, "fsdp": 4, "tensor": 1}
    rows = {(row["part"], row["path"]): row for row in found["arrays"]}
    row = rows["parameters", "embed/embedding"]
    assert (row["axes"], row["spec"], row["copies"]) == (["vocab", "embed"], [[], ["fsdp"]], 2)


def test_it_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / "sharding.svg"
    assert cli.run(["explain", "sharding", "--plot", str(file), *SPREAD]) == 0
    # matplotlib draws letters as paths, and leaves each text beside them as a comment.
    drawn = file.read_text()
    assert "<!-- parameters: layers/mlp/up/kernel -->" in drawn
    assert "<!-- data, fsdp -->" in drawn


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["optimizer", "--plot", "x.svg"], "--plot: optimizer has no drawing; only sharding has"),
        (["sharding", "--plot", "x.foo"], "--plot x.foo: Format 'foo' is not supported"),
        (["sharding", "--plot", "x"], "--plot x: its ending says what is drawn, such as x.svg"),
    ],
)
def test_a_drawing_that_cannot_be_made_is_a_mistake(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if arguments[0] == "sharding":
        pytest.importorskip("matplotlib")
    assert cli.run(["explain", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_devices_that_are_not_there_are_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever `[distributed]` says, no process is waited for."""
    monkeypatch.setattr("trainer_core.assemble.connect", lambda *arguments: 1 / 0)
    several = ["distributed.coordinator=localhost:1", "distributed.processes=2"]
    topology = ["--topology", "cpu:4"]
    assert cli.run(["explain", "sharding", "--json", *several, *topology]) == 0
    assert json.loads(capsys.readouterr().out)["mesh"] == {"data": 4, "fsdp": 1, "tensor": 1}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["distributed.processes=2"],
            "[distributed] processes = 2: `trainer explain sharding` con",
        ),
        (["shard.dcn.data=2"], "[shard] dcn = {data = 2}: `trainer explain sharding` connects no"),
        (
            ["shard.dcn.data=2", "--topology", "cpu:8"],
            "needs 2 processes, not 1; set shard.dcn={}, or give such devices (`trainer plan` takes"
            " --topology 2xv5e:4x4)",
        ),
        (["--topology", ""], "there is no chip ''"),
    ],
)
def test_devices_that_one_process_does_not_see_are_asked_for(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["explain", "sharding", *arguments]) == 2
    assert said in capsys.readouterr().err
