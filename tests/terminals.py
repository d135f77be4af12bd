"""Run a command of `trainer` on a terminal."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import sys
import threading

import pytest

from trainer_core.cli import run as run_command


def on_terminal(
    arguments: list[str], expected: int, monkeypatch: pytest.MonkeyPatch, columns: int = 100
) -> tuple[str, str]:
    """Run a command on a terminal; return what it wrote, and the same as text."""
    master, slave = pty.openpty()
    chunks: list[bytes] = []

    def read() -> None:
        with contextlib.suppress(OSError):  # which says that the other side is closed
            while chunk := os.read(master, 65536):
                chunks.append(chunk)

    reader = threading.Thread(target=read)
    reader.start()
    for name, value in (("TERM", "xterm-256color"), ("COLUMNS", str(columns)), ("LINES", "30")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)
    with monkeypatch.context() as patched, os.fdopen(slave, "w") as stdout:
        patched.setattr(sys, "stdout", stdout)
        code = run_command(arguments)
    reader.join()
    os.close(master)
    assert code == expected
    written = b"".join(chunks).decode()
    return written, re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written)
