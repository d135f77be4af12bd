"""`trainer new-plugin KIND NAME`: a package to begin with, whose tests pass as it is."""

from __future__ import annotations

import re
from argparse import Namespace
from importlib.resources import files
from importlib.util import find_spec
from keyword import iskeyword
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from trainer_core.errors import UserError
from trainer_core.registry import PLUGINS, SLOTS, candidates
from trainer_core.suggest import did_you_mean
from trainer_core.terminal.page import Page

if TYPE_CHECKING:
    from trainer_core.cli.failures import Context
    from trainer_core.cli.parsing import Parser


@attrs.frozen
class Kind:
    """A kind of plugin: its entry-point group, its table in a recipe, its conformance suite."""

    group: str
    table: str
    suite: str
    needs: tuple[str, ...] = ()

    def recipe(self, name: str) -> str:
        if self.table == "plugins":
            return f"[plugins.{name}]"
        return f'[{self.table}]\nuse = "{name}"'


KINDS = {
    "optimizer": Kind("trainer.optimizers", "optimizer", "OptimizerSuite", ("optax>=0.2.5",)),
    "model": Kind("trainer.models", "model", "ModelSuite", ("jax>=0.7.0",)),
    "data": Kind("trainer.data", "data", "DataSuite", ("numpy>=1.26",)),
    "logger": Kind("trainer.plugins", "plugins", "PluginSuite", ("attrs>=23.2",)),
    "wrapper": Kind("trainer.plugins", "plugins", "PluginSuite", ("attrs>=23.2", "optax>=0.2.5")),
    "checkpoint": Kind(
        "trainer.checkpoints", "checkpoint", "CheckpointSuite", ("jax>=0.7.0", "numpy>=1.26")
    ),
}


def configure(parser: Parser) -> None:
    """Declare the arguments."""
    parser.add_argument("kind", metavar="KIND", help=f"one of {', '.join(KINDS)}")
    parser.add_argument(
        "name", metavar="NAME", help="as a recipe will name it; the package is trainer-NAME-plugin"
    )
    parser.examples = [
        ("trainer new-plugin optimizer lion", "writes trainer-lion-plugin/"),
        ("trainer new-plugin logger kafka", "an observer, for [plugins.kafka]"),
    ]


def run(arguments: Namespace, context: Context) -> int:
    """Write the package into a folder of its own, here."""
    del context
    kind = arguments.kind
    name = arguments.name.removeprefix("trainer-").removesuffix("-plugin")
    if kind not in KINDS:
        raise UserError(
            f"there is no kind of plugin {kind!r}{did_you_mean(kind, KINDS)}; "
            f"there are: {', '.join(KINDS)}"
        )
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise UserError(
            f"{name!r} cannot be the name of a plugin: take small letters, digits, and - between "
            f"them, such as {_better(name)!r}"
        )
    _check_free(KINDS[kind], name)
    folder = Path(f"trainer-{name}-plugin")
    if folder.exists():
        raise UserError(f"{folder} exists already; nothing was written")
    written = package(kind, name)
    for path, text in written.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    _say(folder, name, list(written))
    return 0


def package(kind: str, name: str) -> dict[str, str]:
    """Return the files of a new package: path to text."""
    made = KINDS[kind]
    module = _module(name)
    source = files("trainer_core.templates").joinpath(f"{kind}.py").read_text()
    cls = "".join(part.capitalize() for part in name.split("-"))
    if iskeyword(cls) or re.search(rf"\b{cls}\b", source):
        cls += kind.capitalize()  # else it would be None, or hide what the module imports
    words = {
        "NAME": name,
        "MODULE": module,
        "CLASS": cls,
        "KIND": kind,
        "GROUP": made.group,
        "SUITE": made.suite,
        "NEEDS": "".join(f', "{each}"' for each in made.needs),
        "RECIPE": made.recipe(name),
    }
    return {
        "pyproject.toml": _filled(_PYPROJECT, words),
        "README.md": _filled(_README, words),
        f"{module}.py": re.sub(r"\bExample\b", cls, source),
        f"tests/test_{module}.py": _filled(_TEST, words),
    }


_PYPROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "trainer-{NAME}-plugin"
version = "0.1.0"
requires-python = ">=3.11"
dependencies = ["trainer-core>=0.1,<0.2"{NEEDS}]

[project.entry-points."{GROUP}"]
{NAME} = "{MODULE}:{CLASS}"

[tool.hatch.build.targets.wheel]
only-include = ["{MODULE}.py"]
"""

_README = """\
# trainer-{NAME}-plugin

The {KIND} `{NAME}` for trainer-core.

```
pip install .
trainer plugins {NAME}
```

In a recipe:

```toml
{RECIPE}
```

To work on it: `pip install -e . pytest`, then `pytest`. The tests are the conformance suite of
trainer-core: they try what every {KIND} must hold to, and say what to mend.
"""

_TEST = """\
from trainer_core.testing import {SUITE}


class Test{CLASS}({SUITE}):
    use = "{NAME}"
"""


def _module(name: str) -> str:
    return f"trainer_{name.replace('-', '_')}"


def _check_free(kind: Kind, name: str) -> None:
    """Refuse a name that a recipe, or Python, would take for something else."""
    slot = SLOTS.get(kind.table, PLUGINS)
    for each in candidates(slot):
        if each.name == name:
            raise UserError(
                f"{name!r} is registered for [{slot.name}] by {each.origin} already; take another "
                f"name"
            )
    if find_spec(_module(name)) is not None:
        raise UserError(
            f"the module of the new package, {_module(name)}, would hide the one that is installed "
            f"under that name; take another than {name!r}"
        )


def _filled(text: str, words: dict[str, str]) -> str:
    return re.sub(r"\{([A-Z]+)\}", lambda found: words[found[1]], text)


def _better(name: str) -> str:
    name = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-0123456789")
    return name or "my-plugin"


def _say(folder: Path, name: str, written: list[str]) -> None:
    page = Page()
    page.line(("wrote", "bold"), f" {folder}")
    meanings = (
        "its name, what it needs, and the entry point",
        "how to install and to use it",
        "the plugin, to be changed into yours",
        "its conformance suite",
    )
    install = f"pip install -e ./{folder} pytest"
    commands = [
        (install, "installs it here, as it is"),
        (f"trainer plugins {name}", "shows its settings"),
        (f"pytest {folder}", "tries what the suite asks of it"),
    ]
    left = max(len(each) for each in (install, *written)) + 2
    page.rows(list(zip(written, meanings, strict=True)), indent=2, style="cyan", left=left)
    page.line()
    page.line(("next", "bold"))
    page.rows(commands, indent=2, style="cyan", left=left)
