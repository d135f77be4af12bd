"""Writes checkpoints, one at a time, while training goes on."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from trainer_checkpoint import steps as folders
from trainer_checkpoint.keeping import prune
from trainer_checkpoint.quiet import quiet
from trainer_checkpoint.text import Text, TextHandler
from trainer_core.errors import RunError
from trainer_core.saved import SAVED, note_saved

logger = logging.getLogger("trainer_core.checkpoint")
# Orbax would give up after ten minutes, which it takes from a clock that may be set meanwhile.
_PATIENCE = 7 * 86_400  # seconds
_LOOKS, _BETWEEN = 10, 0.05  # after a failed write, at what it still leaves; seconds


class Writer:
    """Writes checkpoints to a folder; the only object that changes anything there.

    Orbax's `CheckpointManager` was rejected for the writing: it counts damaged and half-copied
    folders as checkpoints, refuses a step silently, believes in a step whose save failed, and
    deletes old ones file by file. The `AsyncCheckpointer` inside it writes the same files.

    Args:
        directory: the folder of checkpoints; made when it is missing.
        keep: see `prune`.
        keep_every: see `prune`.
        is_main: whether this process renames and deletes; all of them write.
        resumed: the step from which the run goes on; what lies beyond it was not to be trusted,
            and is set aside. None: it started from nothing.
        failed: called with what went wrong, in another thread, as soon as a write has failed; its
            error is raised by the next call of any other method.
    """

    def __init__(
        self,
        directory: Path,
        *,
        keep: int,
        keep_every: int | None,
        is_main: bool,
        resumed: int | None,
        failed: Callable[[str], None],
    ) -> None:
        self._directory = directory.absolute()  # Orbax accepts no other
        self._keep, self._keep_every, self._is_main = keep, keep_every, is_main
        # Uncompressed: trained numbers shrink by 8%, and are read twice as fast without.
        arrays = ocp.PyTreeCheckpointHandler(use_compression=False)
        self._checkpointer = ocp.AsyncCheckpointer(
            ocp.CompositeCheckpointHandler(state=arrays, meta=TextHandler(), data=TextHandler()),
            timeout_secs=_PATIENCE,
        )
        self._thread: threading.Thread | None = None
        self._step = -1
        self._error: Exception | None = None
        self._has_failed = False
        self._tell = failed
        if is_main:
            self._prepare(resumed)
        self._quiet = ExitStack()
        self._quiet.enter_context(quiet())

    def save(
        self,
        step: int,
        state: Mapping[str, Any],
        meta: Mapping[str, Callable[[], str]],
        data: Mapping[str, Callable[[], str]],
    ) -> None:
        """Begin to write a checkpoint; the arrays may be donated when this returns.

        Args:
            step: its name.
            state: nested dicts of arrays.
            meta: file names to what will return their text, in another thread.
            data: the same.

        Raises:
            RunError: this checkpoint, or the one before, cannot be written.
        """
        self.wait()
        self._step = step
        begun = threading.Event()
        try:
            if self._is_main:
                folders.check_writable(self._directory)
            with ExitStack() as end:
                end.callback(begun.set)  # after an error too: threads wait for it
                self._checkpointer.save(
                    self._directory / str(step),
                    args=ocp.args.Composite(
                        state=ocp.args.PyTreeSave(state),
                        meta=Text(meta, begun),
                        data=Text(data, begun),
                    ),
                )
        except Exception as error:
            raise self._failed(error) from error
        self._thread = threading.Thread(target=self._finish, name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Wait until the last checkpoint is on disk.

        Raises:
            RunError: it cannot be written.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise self._failed(error) from error

    def check(self) -> None:
        """Do as `wait` does, if that takes no time."""
        if self._thread is not None and not self._thread.is_alive():
            self.wait()

    def close(self) -> None:
        """Do as `wait` does, and release everything."""
        try:
            self.wait()
        finally:
            self._checkpointer.close()
            self._quiet.close()
            if self._has_failed and self._is_main:
                self._discard_late()

    def _prepare(self, resumed: int | None) -> None:
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            folders.clean(self._directory)
            for step in folders.no_folders(self._directory):
                aside = folders.set_aside(self._directory, step)
                name = self._directory / str(step)
                logger.warning("%s is no folder: it is now %s", name, aside.name)
            for step in folders.steps(self._directory):
                if resumed is not None and step > resumed:
                    folders.set_aside(self._directory, step)
        except OSError as error:
            raise RunError(f"{self._directory} cannot be written to: {_cause(error)}") from error

    def _finish(self) -> None:
        try:
            self._checkpointer.wait_until_finished()
            if self._is_main:  # before an older one goes
                folders.settle(self._directory, self._step)
        except Exception as error:
            self._error = error
            self._tell(f"the checkpoint of step {self._step} cannot be written")
            return
        if not self._is_main:
            return
        run = self._directory.parent
        try:
            note_saved(run, self._step)
        except OSError as error:
            logger.warning("%s cannot be written: %s", run / SAVED, error)
        try:
            prune(self._directory, self._keep, self._keep_every)
        except OSError as error:  # nothing is lost by it
            logger.warning("old checkpoints cannot be deleted: %s", error)

    def _discard_late(self) -> None:
        # What TensorStore had in hand when Orbax gave up is written all the same, and makes every
        # folder above it; nothing says when it is through.
        for _ in range(_LOOKS):
            folders.discard_unfinished(self._directory, self._step)
            time.sleep(_BETWEEN)

    def _failed(self, error: Exception) -> RunError:
        self._has_failed = True
        self._quiet.pop_all()  # for good: what is still being written is about to fail, too
        if self._is_main:
            folders.discard_unfinished(self._directory, self._step)
        found = folders.steps(self._directory)
        older = ", ".join(str(step) for step in found if step != self._step)
        kept = f"the older ones are intact: steps {older}" if older else "there is no older one"
        return RunError(
            f"the checkpoint of step {self._step} cannot be written to "
            f"{self._directory / str(self._step)}: {_cause(error)}; {kept}"
        )


def _cause(error: Exception) -> str:
    text = str(error)
    if "No space left" in text:
        return "no space left on the disk"
    if "Connection closed by peer" in text or "Connection reset by peer" in text:
        return "the connection to another process broke"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return text.splitlines()[0] if text else type(error).__name__
