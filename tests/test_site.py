"""What the site shows of the code is so: the drawing, the errors, the levels, where links lead.

That it is built without a warning, CI sees by building it.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs
import pytest
from trainer_muon.plugin import Muon

from trainer_core import hookspecs
from trainer_core.config import load_config
from trainer_core.defaults.text import Text
from trainer_core.types import Axis, ParamInfo

ROOT = Path(__file__).parents[1]
HOOKS = [name for name in vars(hookspecs.TrainerSpec) if not name.startswith("_")]


@pytest.fixture(scope="module")
def scripts() -> Iterator[Callable[[str], ModuleType]]:
    """Return a function that imports one of docs/scripts."""
    folder = str(ROOT / "docs" / "scripts")
    sys.path.insert(0, folder)
    yield importlib.import_module
    sys.path.remove(folder)
    for name in ("api", "drawing", "errors", "pages"):
        sys.modules.pop(name, None)


# ---------------------------------------------------------------------------- the drawing


@pytest.fixture(scope="module")
def drawing(scripts: Callable[[str], ModuleType]) -> Any:
    return scripts("drawing")


def test_the_drawing_of_the_loop_is_that_of_the_code(drawing: Any) -> None:
    assert (ROOT / "docs" / "loop.svg").read_text() == drawing.svg(drawing.order()), (
        "the order of the hooks, or what one says of itself, has changed: "
        "`uv run python docs/scripts/drawing.py > docs/loop.svg`"
    )


def test_every_hook_and_every_act_of_the_core_is_in_the_drawing(drawing: Any) -> None:
    lines = drawing.order()
    drawn = {line.text for line in lines if line.kind == "hook"}
    drawn |= {"phase"} if any(line.kind == "phase" for line in lines) else set()
    assert drawn == set(HOOKS)
    assert {line.text for line in lines if line.kind == "act"} == set(drawing.ACTS.values())


LOOP = """\
from own_parts import closing, build

def train(hooks):
    with closing(hooks):
        hooks.phase(name="building")
        interruptible(lambda: build(1, hooks))
        if state is None:
            hooks.start()
        elif ready:
            hooks.shard()
        while going:
            for each in hooks.evaluate():
                pass
            if due:
                hooks.report()
"""
PARTS = """\
def build(n, hooks):
    def work():
        return hooks.step(loss=hooks.accumulate())
    return work()

def closing(hooks):
    hooks.restore()
    try:
        yield
    finally:
        hooks.close()
"""


def test_the_order_is_followed_through_calls_conditions_and_loops(
    drawing: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_loop.py").write_text(LOOP)
    (tmp_path / "own_parts.py").write_text(PARTS)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert [attrs.astuple(line) for line in drawing.order("own_loop", "train")] == [
        ("hook", "restore", 0),
        ("phase", "building", 0),
        ("hook", "accumulate", 0),
        ("hook", "step", 0),
        ("if", "if state is None", 0),
        ("hook", "start", 1),
        ("if", "else if ready", 0),
        ("hook", "shard", 1),
        ("loop", "each step, while going", 0),
        ("hook", "evaluate", 1),
        ("if", "if due", 1),
        ("hook", "report", 2),
        ("hook", "close", 0),
    ]


def test_the_architecture_says_what_is_in_every_folder() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    files = [*ROOT.glob("trainer_core/*/__init__.py"), *ROOT.glob("plugins/*/pyproject.toml")]
    folders = [file.parent.relative_to(ROOT).as_posix() for file in files]
    assert len(folders) > 5
    missing = [each for each in folders if f"`{each}" not in text]
    assert not missing, f"docs/architecture.md says nothing of {missing}"


# ---------------------------------------------------------------------------- the errors


@pytest.fixture(scope="module")
def messages(scripts: Callable[[str], ModuleType]) -> list[str]:
    found = scripts("errors").project(ROOT)
    return [each.text for messages in found.values() for each in messages]


def unknown_table() -> None:
    load_config({"optimiser": {}})


def unknown_key() -> None:
    load_config({"run": {"stepps": 3}})


def misspelled_plugin() -> None:
    load_config({"schedule": {"use": "cosinus"}})


def missing_module() -> None:
    load_config({"optimizer": {"use": "nowhere:Optimizer"}})


def missing_text() -> None:
    Text(path="no/such/folder").check({})


def odd_heads() -> None:
    load_config({"model": {"head_dim": 3}})


def bad_coefficients() -> None:
    Muon(coefficients="fast").check({})


def axes_that_do_not_fit() -> None:
    ParamInfo("a", (2, 3), "float32", (Axis("x"),))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "mistake",
    [
        *(unknown_table, unknown_key, misspelled_plugin, missing_module),
        *(missing_text, odd_heads, bad_coefficients, axes_that_do_not_fit),
    ],
)
def test_what_is_printed_is_found_among_the_errors(
    mistake: Callable[[], None], messages: list[str]
) -> None:
    with pytest.raises(ValueError) as raised:  # noqa: PT011, its text is looked for below
        mistake()
    said = str(raised.value)
    found = [text for text in messages if matches(text, said)]
    assert found, said
    words = max(found, key=len)  # and not by a pattern that would match anything
    assert len(re.findall(r"\w{2,}", words)) >= 3, words


def matches(text: str, said: str) -> bool:
    """Whether all that a message on the page has between two `…` is in what was said."""
    fragments = [each.strip(" :;,=\"'()") for each in text.split("…")]
    return all(each in said for each in fragments)


def test_no_message_is_listed_that_is_only_what_is_filled_in(messages: list[str]) -> None:
    assert len(messages) > 200
    assert not [text for text in messages if not re.search(r"\w", text)]


def test_code_is_shown_whatever_backticks_it_holds(scripts: Callable[[str], ModuleType]) -> None:
    code = scripts("errors").code
    assert code("plain") == "`plain`"
    assert code("run `x` now") == "``run `x` now``"
    assert code("`x` is old") == "`` `x` is old ``"


# ---------------------------------------------------------------------------- pages and links


@pytest.fixture(scope="module")
def pages(scripts: Callable[[str], ModuleType]) -> Any:
    return scripts("pages")


def levels(pages: Any) -> dict[str, list[Path]]:
    """Return the pages below each heading of docs/index.md."""
    index = ROOT / "docs" / "index.md"
    found = {}
    for section in re.split(r"^## ", index.read_text(), flags=re.MULTILINE)[1:]:
        links = [target for _, target in pages.Link.findall(section)]
        found[section.partition("\n")[0]] = [(index.parent / each).resolve() for each in links]
    return found


def test_every_page_stands_in_exactly_one_level(pages: Any) -> None:
    found = levels(pages)
    assert list(found) == ["Use", "Customise", "Write a plugin"]
    assert set(pages.NAVIGATION) <= set(found)
    listed = [page for level in found.values() for page in level]
    expected = {*ROOT.glob("docs/*.md"), *pages.moved()} - {ROOT / "docs" / "index.md"}
    missing = [str(page.relative_to(ROOT)) for page in sorted(expected - {*listed})]
    assert not missing, f"docs/index.md lists each page below one of its headings; add: {missing}"
    assert sorted(listed) == sorted(expected), "docs/index.md lists each page once"


def test_the_navigation_has_all_pages_of_a_level(pages: Any) -> None:
    index = ROOT / "docs" / "index.md"
    text = pages.with_navigation(pages.linked(index.read_text(), index, index))
    for level in ("Use", "Customise", "Write a plugin"):
        tree = text.partition(f":caption: {level}\n\n")[2].partition("\n```")[0].splitlines()
        assert len(tree) == len(levels(pages)[level]) + len(pages.NAVIGATION.get(level, []))
    assert "\nFirst steps <_made/readme>\nRecipes <recipes>\n" in text


@pytest.mark.parametrize(
    ("page", "text", "expected"),
    [
        ("README.md", "[a](docs/muon.md#rules)", "[a](../muon.md#rules)"),
        ("README.md", "[a](CHANGELOG.md)", "[a](changelog.md)"),
        ("README.md", "[a](#here)", "[a](#here)"),
        ("README.md", "[a](https://x.org/a.md)", "[a](https://x.org/a.md)"),
        ("plugins/trainer-muon-plugin/README.md", "[`a`](../../tests/test_muon.py)", "`a`"),
        (
            "plugins/trainer-muon-plugin/README.md",
            "[a\nb](../trainer-nnx-plugin/README.md#c)",
            "[a\nb](trainer-nnx-plugin.md#c)",
        ),
        ("README.md", "```text\n[a](docs/muon.md)\n```\n", "```text\n[a](docs/muon.md)\n```\n"),
    ],
)
def test_links_of_a_moved_page_lead_to_the_same_place(
    pages: Any, page: str, text: str, expected: str
) -> None:
    file = ROOT / page
    assert pages.linked(text, file, pages.moved()[file]) == expected


def test_a_link_out_of_docs_leads_to_the_page_that_the_site_has(pages: Any) -> None:
    page = ROOT / "docs" / "hooks.md"
    text = "[a](../plugins/trainer-linen-plugin/README.md) and [b](api.txt)"
    expected = "[a](_made/trainer-linen-plugin.md) and [b](api.txt)"
    assert pages.linked(text, page, page) == expected


def test_the_reference_has_every_setting_command_and_public_name(
    pages: Any, scripts: Callable[[str], ModuleType]
) -> None:
    import tomllib

    made = "".join(
        "\n".join(pages.reference(tomllib.loads(file.read_text())))
        for file in scripts("api").project_files(ROOT)
    )
    lines = (ROOT / "docs" / "api.txt").read_text().splitlines()
    modules = {line.removeprefix("package ") for line in lines}
    for line in lines:
        kind, rest = line.split(" ", 1)
        if kind == "offer" and not rest.startswith("trainer.commands"):
            name = rest.split(" ")[0].rpartition(".")[2]
            assert f'use = "{name}"`' in made or f"[plugins.{name}]" in made, line
        elif kind == "command":
            assert f"### `trainer {re.split('[ :]', rest)[0]}`" in made, line
        elif kind == "python" and rest.split("(")[0].rpartition(".")[0] in modules:
            assert re.search(rf"auto\w+:: {re.split('[(]', rest)[0]}\n", made), line
