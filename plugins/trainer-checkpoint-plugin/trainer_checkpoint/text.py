"""An Orbax item of text files, whose texts are made while the arrays are being written."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp


class TextHandler(ocp.AsyncCheckpointHandler):  # type: ignore[misc]
    """Writes the files of a `Text`. Each process writes those that it was given."""

    async def async_save(self, directory: Any, args: Text) -> list[Any]:
        future = ocp.future.CommitFutureAwaitingContractedSignals(
            _write(Path(directory), args), name="text"
        )
        return [future]

    def save(self, directory: Any, args: Text) -> None:
        for name, text in args.files.items():
            (Path(directory) / name).write_text(text(), encoding="utf-8")

    def restore(self, directory: Any, args: Text | None = None) -> dict[str, str]:
        return {path.name: path.read_text(encoding="utf-8") for path in Path(directory).iterdir()}


@ocp.args.register_with_handler(TextHandler, for_save=True, for_restore=True)
@dataclass
class Text(ocp.args.CheckpointArgs):  # type: ignore[misc]
    """Text files: their names, and what returns their text, in another thread.

    `after` is set when the loop goes on: until then the processors are for what it waits for.
    """

    files: Mapping[str, Callable[[], str]]
    after: threading.Event


async def _write(directory: Path, args: Text) -> None:
    args.after.wait()
    for name, text in args.files.items():
        (directory / name).write_text(text(), encoding="utf-8")
