"""What the matrix of tox.ini needs beside tox: its wheels' requirements, and what came of it.

python .ci/matrix.py requirements WHEELS   beside the wheels: core.txt, nnx.txt, … all.txt
python .ci/matrix.py record FILE           the versions of this environment, as JSON
python .ci/matrix.py page RESULTS          what was recorded there, as docs/compatibility.md
"""

from __future__ import annotations

import json
import platform
import re
import sys
from collections.abc import Iterator
from email.parser import Parser
from hashlib import sha256
from importlib import import_module
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path
from zipfile import ZipFile

STACK = ("jax", "flax", "optax", "orbax-checkpoint", "numpy")


def requirements(wheels: Path) -> None:
    """For each of our packages, and for all together: its wheels and what they require.

    Each requirement stands there by itself, so that `lowest-direct` takes its lower bound.
    """
    found = {}
    for wheel in wheels.glob("*.whl"):
        with ZipFile(wheel) as archive:
            name = next(each for each in archive.namelist() if each.endswith(".dist-info/METADATA"))
            metadata = Parser().parsestr(archive.read(name).decode())
        needs = [each for each in metadata.get_all("Requires-Dist", []) if "extra ==" not in each]
        found[metadata["Name"]] = (wheel, needs)

    def closure(name: str) -> Iterator[str]:
        yield name
        for need in found[name][1]:
            if _name(need) in found:
                yield from closure(_name(need))

    sets = {short(name): [name] for name in found} | {"all": list(found)}
    for cell, roots in sets.items():
        names = sorted({each for root in roots for each in closure(root)})
        lines = [f"{name} @ {_address(found[name][0])}" for name in names]
        lines += sorted({n for name in names for n in found[name][1] if _name(n) not in found})
        (wheels / f"{cell}.txt").write_text("\n".join(lines) + "\n")


def record(file: Path) -> None:
    """Write which versions this environment has; refuse one that would test the checkout."""
    for each in distributions():
        if (name := each.name).startswith("trainer-"):
            where = Path(str(import_module(f"trainer_{short(name)}").__file__))
            if "site-packages" not in where.parts:
                sys.exit(f"{where} is not installed: the wheel is to be tested, not the checkout")
    versions = {"python": platform.python_version()}
    for name in STACK:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = ""  # this plugin does without
    versions["trainer-core"] = version("trainer-core")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(versions, indent=2) + "\n")


def page(results: Path) -> None:
    """Write docs/compatibility.md."""
    rows = []
    for file in results.glob("py*.json"):
        python, cell, stack = file.stem.split("-")
        versions = json.loads(file.read_text())
        rows.append((cell != "core", cell == "all", cell, stack == "latest", python, versions))
    if not rows:
        sys.exit(f"nothing is recorded in {results}; `tox` does so")
    lines = [_HEAD.format(version=rows[0][-1]["trainer-core"])]
    lines.append(f"| installed | stack | Python | {' | '.join(STACK)} |")
    lines.append("| --- " * (3 + len(STACK)) + "|")
    for _, _, cell, latest, _, versions in sorted(rows, key=lambda row: row[:5]):
        installed = {"core": "trainer-core", "all": "all of them"}.get(
            cell, f"trainer-{cell}-plugin"
        )
        cells = [installed, "newest" if latest else "oldest", versions["python"]]
        lines.append("| " + " | ".join(cells + [versions[name] or "-" for name in STACK]) + " |")
    text = "\n".join(lines) + "\n"
    (Path(__file__).parents[1] / "docs" / "compatibility.md").write_text(text)


def short(distribution: str) -> str:
    return distribution.removeprefix("trainer-").removesuffix("-plugin")


def _address(wheel: Path) -> str:
    """With its digest, so that tox sees another wheel of the same version."""
    return f"{wheel.resolve().as_uri()}#sha256={sha256(wheel.read_bytes()).hexdigest()}"


def _name(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0]


_HEAD = """\
# Compatibility

Every row is an environment in which wheels of trainer-core {version} were installed, a plugin with
only what it declares, and its conformance suite passed; with all of them, runs in NNX and in Linen
were equal, and Muon trained. *Oldest* is the lowest version, of those with a wheel for this Python,
that our `pyproject.toml` files allow of each package that they name, *newest* what the index had
on that day. This page is written by `tox`, from what it ran.
"""

if __name__ == "__main__":
    command, path = sys.argv[1:]
    {"requirements": requirements, "record": record, "page": page}[command](Path(path))
