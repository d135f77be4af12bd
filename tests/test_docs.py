"""What the documentation shows is true: every block of it is run, every link leads somewhere.

A fenced block of README.md or docs/*.md is, by its language:

- python: run; all blocks of a page share one namespace and one empty folder, in order;
- toml: a recipe, which `load_config` must accept, or a mapping of names for `trainer convert`;
- console: lines that begin with `$ ` are commands, run in that folder; `trainer`, and `python` with
  a file, in this process; `pip install -e` has the effect for which it is there;
- text: a layout or a formula, not run.

A python or toml block that begins with `# file: NAME` is written to that file. A command must
exit with 0, or with what a `$ echo $?` after it shows. Where output stands below a command, it
is all of the output, but that each number stands for any number, `...` for any text, and a line
`...` for any lines. Commands too slow to run here stand in NOT_RUN.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import math
import os
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import jax
import pytest
from fenced import Block, blocks, masked, pattern
from packages import install
from trainer_checkpoint.convert.mapping import load_mapping

from trainer_core import cli, testing
from trainer_core.config import CORE_TABLES, load_config
from trainer_core.decoder import PRESETS, DecoderConfig
from trainer_core.decoder_parameters import decoder_parameters
from trainer_core.registry import PLUGINS, SLOTS, candidates, load
from trainer_core.settings import setting_fields, shown, structure

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
OTHERS = [ROOT / "CHANGELOG.md", *sorted(ROOT.glob("plugins/*/README.md"))]
# More than ten seconds of training.
TRAINING = ("migration", "muon", "own-model", "recipes", "resume", "write-an-optimizer")
LANGUAGES = ("python", "toml", "console", "text")
OURS = (
    "trainer-core",
    "trainer-nnx-plugin",
    "trainer-linen-plugin",
    "trainer-muon-plugin",
    "trainer-checkpoint-plugin",
    "trainer-tensorboard-plugin",
)

WALK = ("needs an environment of its own", ("tests/test_third_party.py", "write-an-optimizer.md"))
HARD = "model.dropout=0.1 model.compute_dtype=bfloat16 accumulate.microbatches=4"
# The command, why it is not run here, and the file that runs it with the words that do so.
NOT_RUN = {
    "for i in 0 1; do trainer train distributed."
    "{coordinator=localhost:1234,processes=2,process=$i} & done; wait": (
        "trains in two processes for a minute",
        ("tests/processes.py", "distributed.process={index}"),
    ),
    "pip install uv && uv run trainer train": (
        "sets an environment up, and trains for a minute",
        (".ci/run", 'bin/trainer" train'),
    ),
    "pip install uv && uv run pytest": ("runs this test", (".ci/run", "uv run pytest")),
    "uv build --all-packages": (
        "builds sdists and wheels",
        (".ci/release", "uv build --quiet --all-packages"),
    ),
    "pip install --find-links dist trainer-nnx-plugin": (
        "installs into an empty environment",
        (".ci/release", 'pip install --quiet --python "$venv" "$dist"/*.whl'),
    ),
    ".ci/release dist": (
        "builds and installs all distributions",
        (".ci/run", ".ci/release"),
    ),
    "pytest trainer-cautious-plugin": WALK,
    "pytest trainer-pairs-plugin trainer-walks-plugin trainer-csv-plugin trainer-average-plugin "
    "trainer-files-plugin": WALK,
    "uv build trainer-cautious-plugin": WALK,
    "uv publish trainer-cautious-plugin/dist/*": WALK,
    ".ci/run": ("runs this test", (".ci/run", "uv run pytest")),
    f"trainer compare linen.toml nnx.toml --steps 6 {HARD}": (
        "starts two processes, and compiles for long",
        (".ci/run", f"--steps 6 {HARD}"),
    ),
}


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder that is the current one; what is imported from it is forgotten after."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    # The runs are short: compiling takes most of their time.
    jax.config.update("jax_disable_most_optimizations", True)
    yield tmp_path
    jax.config.update("jax_disable_most_optimizations", False)
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


# ---------------------------------------------------------------------------- blocks


@pytest.mark.aside
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[pytest.mark.long] * (page.stem in TRAINING), id=name_of(page))
        for page in PAGES
    ],
)
def test_every_block_of_a_page_does_what_the_page_says(page: Path, folder: Path) -> None:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(page):
        place = f"{name_of(page)}:{block.line}"
        if block.file is not None:
            (folder / block.file).write_text(block.text)
        if block.language == "python" and block.file is None:
            # The line numbers of a traceback are those of the page.
            exec(compile("\n" * (block.line - 1) + block.text, place, "exec"), namespace)
        elif block.language == "toml":
            check_toml(block)
        elif block.language == "console":
            check_commands(block, place)


def check_toml(block: Block) -> None:
    if block.file is None:
        path = Path("unnamed.toml")
        path.write_text(block.text)
        load_config(path)
    elif Path(block.file).name == "pyproject.toml":
        tomllib.loads(block.text)
    elif re.search(r"^(\[\[rule\]\]$|fresh = )", block.text, re.MULTILINE):
        load_mapping(Path(block.file))
    else:
        load_config(Path(block.file))


def check_commands(block: Block, place: str) -> None:
    code, printed = 0, ""
    for command, expected in block.commands:
        if command in NOT_RUN:
            continue
        if command.startswith("pip install -e "):
            for folder in re.findall(r"-e (\S+)", command):
                install_here(Path(folder))
            continue
        if command == "echo $?":
            assert expected == [str(code)], f"{place}: the exit code is {code}"
            code = 0
            continue
        assert code == 0, f"{place}: exits with {code} before `{command}`:\n{printed}"
        code, printed = run(command)
        if expected:
            assert re.fullmatch(pattern(expected), masked(printed.splitlines())), (
                f"{place}: `{command}` prints\n{printed}"
            )
    assert code == 0, f"{place}: exits with {code}:\n{printed}"


def install_here(folder: Path) -> None:
    """Make a package one that is installed, editable, as far as this process sees."""
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    install(folder, project["name"], project["entry-points"], project["version"])
    sys.path.append(str(folder.resolve()))


def run(command: str) -> tuple[int, str]:
    """Return the exit code of a command, and what it printed."""
    name, *arguments = shlex.split(command, comments=True)
    if name in ("trainer", "python") and not set("|&;<>") & set(command):
        output = io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            code = cli.run(arguments) if name == "trainer" else run_file(arguments)
        return code, output.getvalue()
    done = subprocess.run(
        ["bash", "-c", command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    return done.returncode, done.stdout


def run_file(arguments: list[str]) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", arguments)
        runpy.run_path(arguments[0], run_name="__main__")
    return 0


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_is_of_a_kind_that_is_run(page: Path) -> None:
    for block in blocks(page):
        assert block.language in LANGUAGES, f"{name_of(page)}:{block.line}: {block.language}"


@pytest.mark.parametrize("command", NOT_RUN)
def test_a_command_that_is_not_run_here_is_run_elsewhere(command: str) -> None:
    shown_commands = [
        each
        for page in PAGES
        for block in blocks(page)
        if block.language == "console"
        for each, _ in block.commands
    ]
    assert command in shown_commands
    _, (file, words) = NOT_RUN[command]
    assert words in (ROOT / file).read_text()


def test_output_is_compared_but_for_its_numbers() -> None:
    expected = pattern(["step 1/20  loss 5.5", "...", "wrote ...", "done in 3 s"])
    output = ["step 1/100  loss 12.25", "step 2", "", "wrote runs/a", "done in 12.5 s"]
    assert re.fullmatch(expected, masked(output))
    assert not re.fullmatch(expected, masked([*output, "and more"]))
    assert not re.fullmatch(expected, masked([line.replace("loss", "cost") for line in output]))


@pytest.mark.aside
def test_the_first_run_shows_what_the_readme_shows(folder: Path) -> None:
    block = next(each for each in blocks(ROOT / "README.md") if "tiny, " in each.text)
    code, printed = run("trainer train run.steps=2")
    assert code == 0
    assert outline(printed) == outline(block.text)


def outline(text: str) -> list[str]:
    """Return what stands before the first figure of each line, but for text of the model's."""
    passing = re.compile(r"  │|\.\.\.$|\w+ \.\.\. \d+ s$")
    lines = [line for line in text.splitlines() if not passing.match(line)]
    return [" ".join(re.split(r"\d", line)[0].split()) for line in lines]


# ---------------------------------------------------------------------------- links

LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")


def links(page: Path) -> list[tuple[Path, str]]:
    """Return the files, and the headings in them, to which a page links."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    found = []
    for target in LINK.findall(text):
        if "://" not in target:
            path, _, heading = target.partition("#")
            found.append(((page.parent / path).resolve() if path else page, heading))
    return found


def anchors(page: Path) -> set[str]:
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


@pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=name_of)
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for path, heading in links(page):
        assert path.exists(), f"{name_of(page)} links to {path}"
        assert not heading or heading in anchors(path), f"{name_of(page)} links to #{heading}"


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached: set[Path] = set()
    waiting = [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page not in reached and page.suffix == ".md":
            reached.add(page)
            waiting += [path for path, _ in links(page)]
    assert {*PAGES, *OTHERS} <= reached


# ---------------------------------------------------------------------------- lengths


@pytest.mark.parametrize("page", [p for p in PAGES if p.stem != "decisions"], ids=name_of)
def test_a_page_is_read_in_ten_minutes(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    words = [word for line in text.splitlines() if line[:1] != "|" for word in line.split()]
    assert len(words) <= 2000


def test_the_readme_shows_its_two_commands_within_fifteen_lines() -> None:
    first = (ROOT / "README.md").read_text().splitlines()[:15]
    for command in ("pip install uv && uv run trainer train", "pip install uv && uv run pytest"):
        assert any(line.startswith(f"$ {command}") for line in first)


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "docs/own-model.md"], ids=name_of)
def test_a_model_of_ones_own_takes_thirty_lines_or_fewer(page: Path) -> None:
    models = [block for block in blocks(page) if "(nnx.Module)" in block.text]
    assert models
    for block in models:
        assert len(block.text.splitlines()) - 1 <= 30, f"{name_of(page)}:{block.line}"


def test_the_recipe_of_the_readme_has_ten_lines() -> None:
    recipe = next(block for block in blocks(ROOT / "README.md") if block.file == "recipe.toml")
    assert len(recipe.text.splitlines()) - 1 == 10


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "docs/resume.md"], ids=name_of)
def test_every_promise_names_a_test_that_exists(page: Path) -> None:
    promised = re.findall(r"`([\w/-]+\.py)::(\w+)`", page.read_text())
    assert promised
    for file, test in promised:
        assert f"\ndef {test}(" in (ROOT / file).read_text(), f"{file} has no {test}"


def test_every_attribute_of_a_suite_is_documented() -> None:
    page = (ROOT / "docs/write-a-plugin.md").read_text().partition("## What a suite can be told")[2]
    suites = [getattr(testing, name) for name in testing.__all__]
    told = {
        name
        for suite in suites
        for cls in suite.__mro__
        for name in inspect.get_annotations(cls)
        if name != "slot"  # a suite has its own
    }
    assert told
    assert {name for name in told if f"`{name}`" not in page} == set()


# ---------------------------------------------------------------------------- settings


def documented_tables() -> dict[str, list[str]]:
    """Return the rows of each settings table of docs/recipes.md, by its heading."""
    text = (ROOT / "docs/recipes.md").read_text()
    found = {}
    for section in re.split(r"^### ", text, flags=re.MULTILINE)[1:]:
        heading, _, rest = section.partition("\n")
        found[heading] = [line for line in rest.splitlines() if line.startswith("| ")]
    return found


def settings_classes() -> dict[str, type[Any]]:
    """Return every settings class that this project ships, by the heading of its table."""
    found = {f"`[{table}]`": cls for table, cls in CORE_TABLES.items()}
    for slot in SLOTS.values():
        for each in candidates(slot):
            if each.distribution in OURS:
                found[f'`[{slot.name}]`, `use = "{each.name}"`'] = load(each, "")
    for each in candidates(PLUGINS):
        if each.distribution in OURS:
            found[f"`[plugins.{each.name}]`"] = load(each, "")
    return found


def settings_rows(cls: type[Any]) -> list[str]:
    """Return the table that docs/recipes.md should have for a settings class."""
    fields = setting_fields(cls)
    required = [key for key, field in fields.items() if field.default is attrs.NOTHING]
    made = structure(cls, dict.fromkeys(required, "x"), "", str).instance
    rows = ["| key | default | unit | may change | meaning |", "| --- | --- | --- | --- | --- |"]
    for key, field in fields.items():
        default = getattr(made, key)
        value = "not set" if default is None else f"`{shown(default)}`"
        about = {"help": "", "unit": "", "may_change": False, "choices": ()} | dict(field.metadata)
        choices = ", ".join(f"`{each}`" for each in about["choices"])
        cells = [
            f"`{key}`",
            "required" if key in required else value,
            about["unit"],
            "yes" if about["may_change"] else "",
            about["help"] + (f"; one of {choices}" if choices else ""),
        ]
        rows.append("| " + " | ".join(cells).replace("  ", " ") + " |")
    return [re.sub(r" +", " ", row) for row in rows] if fields else []


@pytest.mark.parametrize("heading", settings_classes())
def test_every_setting_is_documented_as_it_is_declared(heading: str) -> None:
    rows = settings_rows(settings_classes()[heading])
    table = "\n".join(rows)
    assert heading in documented_tables(), f"docs/recipes.md lacks:\n### {heading}\n\n{table}"
    assert documented_tables()[heading] == rows, f"docs/recipes.md should say:\n{table}"


def test_no_setting_is_documented_that_does_not_exist() -> None:
    assert [each for each in documented_tables() if "`[" in each] == [
        each for each in documented_tables() if each in settings_classes()
    ]


def test_every_preset_is_documented_with_its_numbers() -> None:
    for preset in PRESETS:
        config = DecoderConfig(preset=preset)
        infos = jax.tree.leaves(decoder_parameters(config))
        count = sum(math.prod(info.shape) for info in infos)
        numbers = (config.layers, config.width, config.heads, config.kv_heads, config.mlp)
        cells = [f"`{preset}`", *numbers, config.vocab, count]
        row = "| " + " | ".join(f"{each:,}" if each != cells[0] else each for each in cells) + " |"
        assert row in (ROOT / "docs/recipes.md").read_text(), row
