"""The `trainer` command as a process of its own, and small runs to give it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from trainer_core.plugin import hookimpl, plugin

TRAINER = str(Path(sys.executable).with_name("trainer"))
TESTS = str(Path(__file__).parent)

PERCEPTRON = ["model.use=models:Perceptron", "data.use=models:Examples"]
DECODER = ["data.length=32", "data.batch_size=4", "model.layers=1", "model.width=32"]
DECODER += ["model.heads=2", "model.kv_heads=1", "run.eval_batches=2"]


def environment(**variables: str) -> dict[str, str]:
    """Return the environment of a command; unlike here, import paths may name `models`."""
    return {**os.environ, "PYTHONPATH": TESTS, "JAX_PLATFORMS": "cpu", **variables}


def trainer(
    *arguments: str, folder: Path, timeout: float = 120, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, without a terminal."""
    return subprocess.run(
        [TRAINER, *arguments],
        cwd=folder,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@contextmanager
def running(*arguments: str, folder: Path, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """Run a command while entered, for a minute at most; both of its streams go to one pipe."""
    process = subprocess.Popen(
        [TRAINER, *arguments],
        cwd=folder,
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    limit = threading.Timer(60, process.kill)
    limit.start()
    try:
        yield process
    finally:
        limit.cancel()
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def read_until(process: subprocess.Popen[str], text: str) -> str:
    """Return what a process writes, up to the line that holds `text`."""
    assert process.stdout is not None
    read = ""
    for line in process.stdout:
        read += line
        if text in line:
            return read
    raise AssertionError(f"it ended without {text!r}:\n{read}")


def files(folder: Path) -> dict[str, Any]:
    """Return the content of every file below a folder, by its path."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@plugin
class Interrupting:
    """Presses Ctrl-C in a hook."""

    hook: ClassVar[str] = ""

    @hookimpl
    def start(self) -> None:
        self._press("start")

    @hookimpl
    def report(self) -> None:
        self._press("report")

    @hookimpl
    def evaluate(self) -> None:
        self._press("evaluate")

    @hookimpl
    def save(self) -> None:
        self._press("save")

    @hookimpl
    def close(self) -> None:
        self._press("close")

    def _press(self, hook: str) -> None:
        if hook == self.hook:
            type(self).hook = ""  # once
            signal.raise_signal(signal.SIGINT)
