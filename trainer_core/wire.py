"""Lines of text between two processes, over a socket; each read ends in time, whatever comes."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from typing import TypeVar

import attrs

Message = TypeVar("Message")
_WRITE = 5.0  # seconds that the other side may take to make room
_MOST = 1 << 22  # bytes of a line; a resolved config has thousands


@attrs.define(eq=False)
class Wire:
    """One end of a connection.

    Args:
        socket: of the connection.
    """

    socket: socket.socket
    _unread: bytes = attrs.field(default=b"", init=False)

    def say(self, line: str) -> None:
        """Send a line; where the other side has left, it will be missed."""
        self.socket.settimeout(_WRITE)
        with contextlib.suppress(OSError):
            self.socket.sendall(line.encode() + b"\n")

    def line(self, seconds: float) -> str | None:
        """Return the next line; None where the other side has left, or its line is too long.

        Raises:
            TimeoutError: none came in time.
        """
        deadline = time.monotonic() + seconds
        while b"\n" not in self._unread:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            if not self._read(left):
                return None
        line, _, self._unread = self._unread.partition(b"\n")
        return line.decode(errors="replace")

    def lines(self) -> list[str] | None:
        """Return the lines that have come; None where there are none, and the other side has left.

        Called where something has come. A line may have come with the one before, and been read.
        """
        if not self._read(_WRITE) and b"\n" not in self._unread:
            return None
        return self.unread()

    def come(self) -> list[str]:
        """Return the lines that are there, without waiting for any."""
        self._read(0.0)
        return self.unread()

    def unread(self) -> list[str]:
        """Return the lines that have come, and been read, with one before."""
        *lines, self._unread = self._unread.split(b"\n")
        return [line.decode(errors="replace") for line in lines]

    def has_left(self) -> bool:
        """Whether the other side has closed; one that waits for its answer sends nothing."""
        self.socket.settimeout(0.0)
        try:
            return self.socket.recv(1, socket.MSG_PEEK) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    def finish(self) -> None:
        """Say nothing more; the other side reads what was said, and then that this one left."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.socket.close()

    def _read(self, seconds: float) -> bool:
        """Read what comes in time, if anything; return whether more may come."""
        self.socket.settimeout(seconds)
        try:
            read = self.socket.recv(1 << 16)
        except TimeoutError:
            return True
        except OSError:
            return False
        self._unread += read
        return bool(read) and len(self._unread) <= _MOST


def written(message: object) -> str:
    """Return an object of an attrs class as a line, for `read` on the other side."""
    return json.dumps(attrs.asdict(message))  # type: ignore[arg-type]


def read(line: str, kind: type[Message]) -> Message | None:
    """Return what a line says; None where it is no such message: it is somebody else's.

    Args:
        line: as it came.
        kind: an attrs class, whose validators say what is one.
    """
    try:
        found = json.loads(line)
        return kind(**{each.name: found[each.name] for each in attrs.fields(kind)})  # type: ignore[arg-type]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
