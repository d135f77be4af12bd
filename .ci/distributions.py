"""Whether the distributions of this checkout may be released.

    python .ci/distributions.py versions         what their pyproject.toml files say of each other
    python .ci/distributions.py contents DIST    what is in the sdists and wheels that were built

The core is at the top, and every folder of plugins/ is another one.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT_FILES = ("pyproject.toml", "README.md", "LICENSE")


def main(arguments: list[str]) -> int:
    """Print what is wrong; 1 where anything is."""
    if arguments == ["versions"]:
        problems = version_problems(ROOT)
    elif len(arguments) == 2 and arguments[0] == "contents":
        problems = content_problems(ROOT, Path(arguments[1]))
    else:
        sys.exit(__doc__)
    for each in problems:
        print(f"error: {each}", file=sys.stderr)
    return 1 if problems else 0


def projects(root: Path) -> dict[str, Path]:
    """Return the folder of each distribution, by its name: the core's first."""
    folders = [root, *sorted(each.parent for each in root.glob("plugins/*/pyproject.toml"))]
    return {project(folder)["name"]: folder for folder in folders}


def project(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    return found


# ---------------------------------------------------------------------------- versions


def version_problems(root: Path) -> list[str]:
    """Return what keeps the versions from being in step: all are one, and admit each other."""
    folders = projects(root)
    core, *plugins = folders
    version = project(root)["version"]
    problems = []
    if not re.search(rf"^## {re.escape(version)}\b", (root / "CHANGELOG.md").read_text(), re.M):
        problems.append(f'CHANGELOG.md has no heading "## {version}", the version of {core}')
    for name in plugins:
        place = (folders[name] / "pyproject.toml").relative_to(root)
        its = project(folders[name])["version"]
        if its != version:
            problems.append(f"{place}: version = {its}, and that of {core} is {version}")
        needed = {
            each.name: each for each in map(Requirement, project(folders[name])["dependencies"])
        }
        if core not in needed:
            problems.append(f"{place}: it does not depend on {core}")
        problems += [
            f"{place}: {needed[other]}: {wrong}"
            for other in folders
            if other in needed and (wrong := _out_of_step(needed[other], Version(version)))
        ]
    return problems


def _out_of_step(needed: Requirement, version: Version) -> str:
    """Why a plugin's bounds on another of our distributions do not fit; nothing where they do.

    Before 1.0 a minor version may break its plugins, so that each admits one minor version.
    """
    series, after = f"{version.major}.{version.minor}", f"{version.major}.{version.minor + 1}"
    lower = [Version(each.version) for each in needed.specifier if each.operator == ">="]
    upper = [each.version for each in needed.specifier if each.operator == "<"]
    fits = [(each.major, each.minor) == (version.major, version.minor) for each in lower]
    if fits != [True] or lower[0] > version or upper != [after]:
        return f"expected >={series},<{after}, as the version is {version}"
    return ""


# ---------------------------------------------------------------------------- contents


def content_problems(root: Path, dist: Path) -> list[str]:
    """Return what is missing in a folder of sdists and wheels, or should not be there."""
    problems, expected = [], set()
    for name, folder in projects(root).items():
        stem = f"{name.replace('-', '_')}-{project(folder)['version']}"
        wheel, sdist = dist / f"{stem}-py3-none-any.whl", dist / f"{stem}.tar.gz"
        package = _package(folder)
        files = _tracked(folder, package)
        place = "" if folder == root else f"{folder.relative_to(root)}/"
        problems += [f"{place}{each}" for each in _unfit(files, package)]
        expected |= {wheel.name, sdist.name}
        if wheel.exists():
            problems += _differences(wheel.name, _in_wheel(wheel), files | _metadata(stem, folder))
        if sdist.exists():
            wanted = {*files, *PROJECT_FILES, "PKG-INFO"}
            wanted |= {"CHANGELOG.md"} if folder == root else set()
            problems += _differences(sdist.name, _in_sdist(sdist, stem), wanted)
    found = {each.name for each in dist.iterdir() if each.name != ".gitignore"}
    problems += [f"{dist.name} lacks {each}" for each in sorted(expected - found)]
    problems += [f"{dist.name}/{each} is none of this release" for each in sorted(found - expected)]
    return problems + license_problems(root)


def license_problems(root: Path) -> list[str]:
    """Return the distributions whose LICENSE is missing or another than that at the top."""
    text = (root / "LICENSE").read_bytes()
    files = [folder / "LICENSE" for folder in projects(root).values()]
    return [
        f"{each.relative_to(root)} is not the LICENSE at the top; copy it there"
        for each in files
        if not each.exists() or each.read_bytes() != text
    ]


def _package(folder: Path) -> str:
    pyproject = tomllib.loads((folder / "pyproject.toml").read_text())
    (package,) = pyproject["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    return str(package)


def _tracked(folder: Path, package: str) -> set[str]:
    """The files of a package that git knows: a file that someone only left there is none of it."""
    command = ["git", "ls-files", "-z", package]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return {name for name in done.stdout.split("\0") if name}


def _metadata(stem: str, folder: Path) -> set[str]:
    names = ["METADATA", "RECORD", "WHEEL", "licenses/LICENSE"]
    about = project(folder)
    if "scripts" in about or "entry-points" in about:
        names.append("entry_points.txt")
    return {f"{stem}.dist-info/{name}" for name in names}


def _unfit(files: Collection[str], package: str) -> list[str]:
    """What no package of ours may lack or hold, though git knows it."""
    typed, unwanted = f"{package}/py.typed", {"tests", "benchmarks", "conftest.py"}
    return [
        *([] if typed in files else [f"{typed} is missing: nobody sees its types"]),
        *(
            f"{name} belongs into no wheel"
            for name in sorted(files)
            if unwanted & {*Path(name).parts}
        ),
    ]


def _in_wheel(path: Path) -> set[str]:
    with zipfile.ZipFile(path) as wheel:
        return {name for name in wheel.namelist() if not name.endswith("/")}


def _in_sdist(path: Path, stem: str) -> set[str]:
    with tarfile.open(path) as sdist:
        names = [each.name for each in sdist.getmembers() if not each.isdir()]
    # hatchling puts the .gitignore that it went by into every sdist.
    return {name.removeprefix(f"{stem}/") for name in names} - {".gitignore"}


def _differences(archive: str, found: set[str], wanted: set[str]) -> list[str]:
    return [
        *(f"{archive} lacks {each}" for each in sorted(wanted - found)),
        *(f"{archive} holds {each}, which should not be in it" for each in sorted(found - wanted)),
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
