"""A third party's plugins, from the outside: docs/write-an-optimizer.md and docs/write-a-plugin.md.

Their files are written and their commands run in a folder outside of the repository, in an empty
environment with the wheels of our distributions. The wheel of the optimizer that comes of it then
takes the place of its folder.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fenced import shown
from third_party import ROOT, Elsewhere, elsewhere, index, walk, wheels

from trainer_core.cli.new_plugin import KINDS, package

PAGE = ROOT / "docs/write-an-optimizer.md"
OTHERS = ROOT / "docs/write-a-plugin.md"
SHOWN = {
    "model": "pairs",
    "data": "walks",
    "logger": "csv",
    "wrapper": "average",
    "checkpoint": "files",
}
FOLDER = "trainer-cautious-plugin"
WHEEL = f"{FOLDER}/dist/trainer_cautious_plugin-0.1.0-py3-none-any.whl"
NAMED = f"{FOLDER} 0.1.0"

STEPS = 40
# As small as the mesh allows: 8 devices, each with one row of each of two microbatches.
RUN = (
    f"trainer train cautious.toml run.steps={STEPS} run.eval_every=20 run.eval_batches=1 "
    "model.width=32 model.heads=2 data.batch_size=16 data.length=32 checkpoint.every=4 "
    "'shard.mesh={data=1,fsdp=8}' accumulate.microbatches=2 plugins.average.use=average:Average "
)
EIGHT = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}


def test_it_takes_under_thirty_lines_and_a_pyproject_of_fifteen() -> None:
    assert len(shown(PAGE, f"{FOLDER}/trainer_cautious.py").splitlines()) < 30
    project = shown(PAGE, f"{FOLDER}/pyproject.toml").splitlines()
    assert len([line for line in project if line]) <= 15
    assert len(shown(PAGE, "cautious.toml").splitlines()) <= 10


@pytest.mark.parametrize("name", ["pyproject.toml", "tests/test_trainer_cautious.py"])
def test_the_page_shows_what_new_plugin_writes(name: str) -> None:
    assert shown(PAGE, f"{FOLDER}/{name}") == package("optimizer", "cautious")[name]


@pytest.mark.parametrize(("kind", "name"), SHOWN.items())
def test_the_other_page_shows_what_new_plugin_writes(kind: str, name: str) -> None:
    module = f"trainer_{name}.py"
    assert shown(OTHERS, f"trainer-{name}-plugin/{module}") == package(kind, name)[module]


@pytest.mark.parametrize("kind", KINDS)
def test_the_lines_that_a_third_party_writes_are_as_the_page_says(kind: str) -> None:
    written = package(kind, "name")
    files = ("trainer_name.py", "pyproject.toml", "tests/test_trainer_name.py")
    counts = [len([line for line in written[file].splitlines() if line]) for file in files]
    about = [kind, f"`{KINDS[kind].group}`", f"`{KINDS[kind].suite}`", *map(str, counts)]
    assert f"| {' | '.join(about)} |" in OTHERS.read_text().splitlines()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Elsewhere]:
    """Return where the page was walked through, and its wheel then installed."""
    folder = tmp_path_factory.mktemp("elsewhere")
    assert ROOT not in folder.parents
    place = elsewhere(folder, wheels(folder / "wheels"))
    with index() as (address, uploads):
        walk(PAGE, place, UV_PUBLISH_URL=address, UV_PUBLISH_TOKEN="a-token")
    assert len(uploads) == 2  # the wheel and the sdist
    place.ok(f"uv pip install --quiet --no-deps --reinstall {WHEEL}")
    return place


@pytest.mark.long
def test_its_wheel_is_what_runs(place: Elsewhere) -> None:
    for module in ("trainer_cautious", "trainer_core", "trainer_nnx"):
        file = place.ok(f"python -c 'import {module}; print({module}.__file__)'").strip()
        assert Path(file).is_relative_to(place.bin.parent)
    place.ok("uv pip check")
    listed = json.loads(place.ok("trainer plugins --check --json"))["plugins"]
    assert [
        (each["distribution"], each["version"], each["state"])
        for each in listed
        if each["name"] == "cautious"
    ] == [(FOLDER, "0.1.0", "ok")]


@pytest.mark.long
def test_plugins_of_the_other_kinds_go_the_same_way(place: Elsewhere) -> None:
    walk(OTHERS, place)


@pytest.mark.long
@pytest.mark.parametrize("framework", ["nnx", "linen"])
def test_killed_on_eight_devices_it_ends_as_if_it_never_was(
    place: Elsewhere, framework: str
) -> None:
    # With a wrapper, too, whose state is spread and must come back.
    (place.folder / "average.py").write_text(shown(ROOT / "docs/hooks.md", "average.py"))
    command = f"{RUN} model.use={framework} run.name="
    place.ok(f"{command}{framework}-whole", **EIGHT)
    killed_after_a_save(f"{command}{framework}-killed", place, f"runs/{framework}-killed")
    printed = place.ok(f"{command}{framework}-killed", **EIGHT)
    assert "resumed     from the checkpoint of step" in printed
    whole, killed = (place.folder / f"runs/{framework}-{end}" for end in ("whole", "killed"))
    assert numbers(killed) == numbers(whole)
    # The same program on the same devices.
    evaluated = place.ok(f"trainer evaluate {killed} --params=average --json", **EIGHT)
    of_average = json.loads(evaluated.splitlines()[-1])["eval_loss"]
    assert of_average == numbers(whole)[-1]["eval_loss_of_average"]
    assert [line["step"] for line in numbers(whole)] == list(range(1, STEPS + 1))
    arrays = place.ok(f"trainer checkpoint show {whole}")
    assert re.search(r" -, fsdp +extra/average/embed/embedding\n", arrays)
    assert "none differs by more than 0\n" in place.ok(f"trainer checkpoint diff {whole} {killed}")
    place.ok(f"trainer compare {whole} {killed}")


def killed_after_a_save(command: str, place: Elsewhere, run: str) -> None:
    with subprocess.Popen(
        ["bash", "-c", f"exec {command}"],
        cwd=place.folder,
        env=place.variables(**EIGHT),
        stdout=subprocess.DEVNULL,
    ) as process:
        while not (place.folder / run / "checkpoints/4").exists() and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL  # and not yet at its end


def numbers(run: Path) -> list[dict[str, Any]]:
    """Return the metrics of each step, but no clock's."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    clock = ("seconds", "tokens_per_second")
    return [
        {name: value for name, value in json.loads(line).items() if name not in clock}
        for line in lines
    ]


@pytest.mark.long
def test_a_run_whose_optimizer_is_gone_says_what_to_install(place: Elsewhere) -> None:
    place.ok(f"uv pip uninstall --quiet {FOLDER}")
    try:
        done = place.run("trainer train cautious.toml run.steps=40")
    finally:
        place.ok(f"uv pip install --quiet --no-deps {WHEEL}")
    assert done.returncode == 2
    assert f"was made with it, from {NAMED}: `pip install {FOLDER}==0.1.0`" in done.stdout
    assert "resumed     from the checkpoint of step 30" in place.ok(
        "trainer train cautious.toml run.steps=40"
    )
