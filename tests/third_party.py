"""An empty environment outside of the repository, with our wheels, and what a page adds to it."""

from __future__ import annotations

import http.server
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
from fenced import blocks, masked, pattern

ROOT = Path(__file__).parents[1]
UV = str(shutil.which("uv"))


@attrs.frozen
class Elsewhere:
    """An environment, and a folder to work in.

    Attributes:
        folder: the current one of every command.
        bin: the programs of the environment; of the others, none from the checkout.
    """

    folder: Path
    bin: Path

    def run(self, command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a command line to its end, its two streams as one."""
        return subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder,
            env=self.variables(**variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
            check=False,
        )

    def ok(self, command: str, **variables: str) -> str:
        """Return what a command prints, which must succeed."""
        done = self.run(command, **variables)
        assert done.returncode == 0, f"`{command}` exits with {done.returncode}:\n{done.stdout}"
        return done.stdout

    def variables(self, **more: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        path = f"{self.bin}{os.pathsep}{os.defpath}"
        return {**kept, "PATH": path, "VIRTUAL_ENV": str(self.bin.parent), **more}


def wheels(dist: Path) -> list[Path]:
    """Build the wheels of all of our distributions into a folder."""
    build = [UV, "build", "--quiet", "--wheel", "--all-packages", "--out-dir", str(dist)]
    subprocess.run(build, cwd=ROOT, check=True)
    return sorted(dist.glob("*.whl"))


def elsewhere(folder: Path, installed: list[Path]) -> Elsewhere:
    """Make an environment in which these wheels are installed, and what they need."""
    environment = folder / "environment"
    subprocess.run([UV, "venv", "--quiet", str(environment)], cwd=folder, check=True)
    place = Elsewhere(folder, environment / "bin")
    (place.bin / "uv").symlink_to(UV)
    # As pip is called; it takes what is in uv's cache.
    (place.bin / "pip").write_text('#!/bin/sh\nexec uv pip "$@"\n')
    (place.bin / "pip").chmod(0o755)
    place.ok("uv pip install --quiet " + " ".join(map(str, installed)))
    return place


def walk(page: Path, place: Elsewhere, **variables: str) -> None:
    """Write every file that a page shows and run every command, and compare what it prints."""
    for block in blocks(page):
        where = f"{page.name}:{block.line}"
        if block.file is not None:
            path = place.folder / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text)
        elif block.language == "console":
            for command, expected in block.commands:
                printed = place.ok(command, **variables)
                if expected:
                    assert re.fullmatch(pattern(expected), masked(printed.splitlines())), (
                        f"{where}: `{command}` prints\n{printed}"
                    )


@contextmanager
def index() -> Iterator[tuple[str, list[bytes]]]:
    """Serve an index that takes every upload while entered: its address, and what it got."""
    uploads: list[bytes] = []

    class Upload(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            uploads.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Upload) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/", uploads
        finally:
            server.shutdown()
