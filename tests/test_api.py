"""The public surface is written down, and does not change without a word in the changelog."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
API = runpy.run_path(str(ROOT / "docs" / "scripts" / "api.py"))
LISTED = (ROOT / "docs" / "api.txt").read_text()
BEFORE = (ROOT / "docs" / "api-before.txt").read_text()
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()


def test_the_list_of_public_names_is_that_of_the_code() -> None:
    listed, made = set(LISTED.splitlines()), API["surface"]()
    gone = [f"- {line}" for line in sorted(listed - {*made.splitlines()})]
    new = [f"+ {line}" for line in sorted({*made.splitlines()} - listed)]
    assert made == LISTED, (
        "the public surface is not what docs/api.txt says; if that is meant: `uv run python "
        "docs/scripts/api.py > docs/api.txt`, and a line in CHANGELOG.md that names it\n"
        + "\n".join([*gone, *new])
    )


def test_the_changelog_names_what_changed_of_the_public_surface() -> None:
    missing = API["unsaid"](BEFORE, LISTED, CHANGELOG)
    assert not missing, (
        "the topmost section of CHANGELOG.md should name these in backticks, as a user would read "
        "of them:\n" + "\n".join(missing)
    )


# ---------------------------------------------------------------------------- that it would tell

BEGUN = """\
# version 0.1.0; made by a script
command train: [RECIPE.toml]
hook save(run: Run, step: int) -> None every
package kernel
python kernel.Run() -> None
python kernel.Run.agree(value: Any) -> Any
python kernel.fit(config: Path) -> Result
setting run.steps: integer = 300
"""
ONE_SECTION = "# Changelog\n\n## 0.1.0 (unreleased)\n\n- The foundation.\n"


def told(now: str, line: str = "", changelog: str = ONE_SECTION) -> list[str]:
    missing: list[str] = API["unsaid"](BEGUN, now, f"{changelog}{line}\n")
    return missing


def test_nothing_needs_to_be_said_where_nothing_changed() -> None:
    assert told(BEGUN) == []


@pytest.mark.parametrize(
    ("old", "new", "name"),
    [
        ("hook save(run: Run, step: int)", "hook save(run: Run, step: int, data: Data)", "save"),
        ("config: Path", "config: Path | str", "fit"),
        ("Run.agree(value: Any)", "Run.agree(value: Any, seconds: float)", "agree"),
        ("steps: integer = 300", "steps: integer = 200", "steps"),
        ("steps: integer", "updates: integer", "updates"),
        ("[RECIPE.toml]\n", "[RECIPE.toml]\ncommand train --quiet\n", "--quiet"),
        ("python kernel.fit(config: Path) -> Result\n", "", "fit"),
        ("package kernel\n", "package kernel\nmetric loss/TERM\n", "loss/TERM"),
        ("package kernel\n", "package kernel\nfile config.toml\n", "config.toml"),
        ("package kernel\n", "package kernel\nexit 3: RunError\n", "exit 3"),
        ("package kernel\n", "package kernel\nenv TRAINER_QUIET\n", "TRAINER_QUIET"),
        ("package kernel\n", "package kernel\nhook load(run: Run) -> None one\n", "load"),
    ],
)
def test_a_change_must_be_named_in_backticks(old: str, new: str, name: str) -> None:
    now = BEGUN.replace(old, new)
    assert any(name in each for each in told(now))
    assert any(name in each for each in told(now, f"- {name} is another."))
    assert any(name in each for each in told(now, f"- `{name}ing` and `un{name}` are others."))
    assert not any(name in each.split(": ", 1)[1] for each in told(now, f"- `{name}` is another."))


def test_a_setting_that_is_renamed_must_be_named_by_both_names() -> None:
    now = BEGUN.replace("steps: integer", "updates: integer")
    assert len(told(now)) == 2
    assert told(now, "- `run.steps` is now called `run.updates`.") == []


def test_a_class_or_command_that_is_new_is_named_as_a_whole() -> None:
    now = BEGUN + "python kernel.Step() -> None\npython kernel.Step.apply() -> None\n"
    assert told(now) == ["new or changed: python kernel.Step() -> None"]
    now = BEGUN + "command plan: DEVICES\ncommand plan --search\n"
    assert told(now, "- `trainer plan` is new.") == []


def test_a_section_that_is_done_does_not_count() -> None:
    changelog = "## 0.2.0 (unreleased)\n\n- `save`\n\n## 0.1.0\n\n- `fit`\n"
    assert told(BEGUN.replace("config: Path", "config: str"), changelog=changelog)
    assert told(BEGUN.replace("step: int", "step: float"), changelog=changelog) == []


def test_a_new_section_begins_from_the_list_of_the_one_below() -> None:
    (problem,) = told(BEGUN, changelog="## 0.3.0 (unreleased)\n\n## 0.2.0\n")
    assert "docs/api-before.txt is of 0.1.0" in problem
    assert "the docs/api.txt of 0.2.0" in problem


# ---------------------------------------------------------------------------- that it sees


class Before:
    """What the list says of a class, before and after each change to it."""

    limit: int = 3

    def step(self, count: int, *, twice: bool = False) -> None: ...
    @property
    def name(self) -> str: ...
    def _own(self) -> None: ...


def members(cls: type) -> list[str]:
    return sorted(API["members"](cls))


def test_methods_attributes_and_their_types_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(API["members"].__globals__, "is_ours", lambda value: value is not object)
    assert members(Before) == [
        "limit: int",
        "name: str",
        "step(count: int, *, twice: bool = False) -> None",
    ]


@pytest.mark.parametrize(
    "line",
    [
        "hook save(run: Run, step: int, state: TrainState, data: Data) -> None every",
        "slot model: default nnx, answers build_state",
        "group trainer.commands",
        "offer trainer.optimizers.muon by trainer-muon-plugin",
        "package trainer_muon",
        "command train --accept-changes",
        "setting run.steps: integer = 300",
        "setting optimizer[muon].momentum: number = 0.95",
        "python trainer_core.Run.agree(value: Any) -> Any",
        "python trainer_core.RunError.exit_code = 1",
        # not in the package's `__all__`: a page shows it
        "python trainer_core.program.build_program(run: Run, hooks: Hooks) -> Program",
    ],
)
def test_every_kind_of_name_is_listed(line: str) -> None:
    assert line in LISTED.splitlines()
