"""Foreign packages to discover: as folders of metadata on sys.path, and as real wheels."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path

Groups = Mapping[str, Mapping[str, str]]


def metadata(name: str, groups: Groups, version: str, requires: str = "") -> dict[str, str]:
    """Return the files of a dist-info folder, by their path beside the code."""
    folder = f"{name.replace('-', '_')}-{version}.dist-info"
    head = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    entry_points = "".join(
        f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in entries.items())
        for group, entries in groups.items()
    )
    return {
        f"{folder}/METADATA": head + (f"Requires-Dist: {requires}\n" if requires else ""),
        f"{folder}/entry_points.txt": entry_points,
    }


def install(
    folder: Path, name: str, groups: Groups, version: str = "3.2.1", requires: str = ""
) -> None:
    """Put a package's metadata into a folder of sys.path; its code is written by the test."""
    for path, text in metadata(name, groups, version, requires).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)


def wheel(folder: Path, name: str, groups: Groups, version: str, code: Mapping[str, str]) -> Path:
    """Write a wheel with these modules, and return its path."""
    stem = f"{name.replace('-', '_')}-{version}"
    tags = "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files = {**code, **metadata(name, groups, version), f"{stem}.dist-info/WHEEL": tags}
    record = [f"{path},sha256={_digest(text)},{len(text.encode())}" for path, text in files.items()]
    files[f"{stem}.dist-info/RECORD"] = "\n".join([*record, f"{stem}.dist-info/RECORD,,"]) + "\n"
    path = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for inside, text in files.items():
            archive.writestr(inside, text)
    return path


def _digest(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
