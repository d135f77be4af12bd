"""One run at a time in a run directory."""

from __future__ import annotations

import json
import logging
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar, TextIO

from trainer_core.errors import RunError, UserError

LOCK = ".lock"
logger = logging.getLogger("trainer_core")


class RunLock:
    """Keeps other runs out of a run directory, from `take` until it is left, or the process dies.

    It is a POSIX lock on a file, across hosts where the file system does that: the operating
    system takes it from a process that is dead, however it died, and no child inherits it. The
    file stays; what stands in it is for the message alone. On Windows, and where the file system
    has no locks, nobody is kept out.

    Args:
        directory: of the run.

    Attributes:
        is_taken: whether this run has it.
    """

    _held: ClassVar[set[Path]] = set()  # a process is not kept out by its own locks

    def __init__(self, directory: Path) -> None:
        self.is_taken = False
        self._directory = directory
        self._file: TextIO | None = None
        self._opened: int | None = None  # the directory: its inode is no other's while it is open
        self._is_comparable = False
        self._path = directory / LOCK

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
            self._held.discard(self._path)
        if self._opened is not None:
            os.close(self._opened)

    def take(self) -> None:
        """Take the lock of a directory that exists, if this run does not have it.

        Raises:
            UserError: another run has it, or its file cannot be written.
        """
        if not self.is_taken and sys.platform != "win32":
            self._file = self._locked()
            # Some network file systems number an open file otherwise than its path.
            self._is_comparable = self._is_own()
            self._opened = os.open(self._directory, os.O_RDONLY)
        self.is_taken = True

    @contextmanager
    def checked(self) -> Iterator[None]:
        """Do as `check` does in the end; where a body failed, too: that may be why."""
        try:
            yield
        except Exception as error:
            try:
                self.check()
            except RunError as cause:
                raise cause from error
            raise
        self.check()

    def check(self) -> None:
        """See that the directory, and its lock, are those that were taken; at once, where none was.

        Raises:
            RunError: it was moved, removed or replaced: what is written there now is lost to it.
                Or its lock's file was: another run may write there, too.
        """
        if self._opened is None:
            return
        try:
            if not _leads_to(self._directory, self._opened):
                raise RunError(
                    f"the run directory {str(self._directory)!r} was moved, removed or replaced "
                    f"while the run trained; nothing is saved to another: put it back, and the "
                    f"same command goes on from its newest checkpoint"
                )
            if self._is_comparable and not self._is_own():
                raise RunError(
                    f"{self._directory / LOCK}, which says that this run has "
                    f"{str(self._directory)!r}, was deleted or replaced while the run trained: "
                    f"another may have begun there, and both would write the same files; nothing "
                    f"more is saved. Leave that file where it is: no run that is dead holds it. "
                    f"The same command goes on from the newest checkpoint, once no other run is "
                    f"there"
                )
        except OSError as error:
            raise RunError(f"{self._directory} cannot be looked at: {error.strerror}") from error

    def _is_own(self) -> bool:
        return self._file is not None and _leads_to(self._directory / LOCK, self._file.fileno())

    def _locked(self) -> TextIO:
        import fcntl

        # Kept: where the directory is called otherwise by the end, it would be another.
        path = self._path = self._directory.resolve() / LOCK
        own = {"process": os.getpid(), "host": platform.node()}
        if path in self._held:
            raise self._refused(own)
        try:
            # "a+", but through no link: the directory may come from somebody else.
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
            file = os.fdopen(os.open(path, flags, 0o666), "a+")
        except OSError as error:
            raise UserError(
                f"{path} cannot be written: {error.strerror}; make the run directory one that you "
                f"may write in, or choose another: run.directory=PATH",
                "run.directory",
                "run.name",
            ) from error
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # either, says POSIX
            file.seek(0)
            holder = file.read()
            file.close()
            raise self._refused(_parsed(holder)) from None
        except OSError as error:
            logger.warning(
                "the file system of %s has no locks (%s): a second run there would not be refused",
                self._directory,
                error.strerror,
            )
        self._held.add(path)
        file.truncate(0)
        since = datetime.now().astimezone().isoformat(timespec="seconds")
        file.write(json.dumps(own | {"since": since}) + "\n")
        file.flush()
        return file

    def _refused(self, holder: dict[str, Any]) -> UserError:
        who = ", ".join(f"{name} {value}" for name, value in holder.items())
        return UserError(
            f"another run is under way in {str(self._directory)!r}{who and f' ({who})'}; wait for "
            f"it, stop it, or start a run of your own with run.name=NAME",
            "run.directory",
            "run.name",
        )


def _leads_to(path: Path, opened: int) -> bool:
    try:
        return os.path.samestat(os.fstat(opened), os.stat(path))
    except FileNotFoundError:
        return False


def _parsed(text: str) -> dict[str, Any]:
    try:
        return dict(json.loads(text))
    except ValueError:  # it is being written
        return {}
