"""Names the process for which JAX waits while it connects all of them and starts the devices.

JAX does not say which it is, and aborts after minutes. So the processes go on to hear of each other
over the sockets by which they met, and those that hear nothing of one for too long end.
"""

from __future__ import annotations

import selectors
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
from attrs.validators import deep_iterable, instance_of

from trainer_core.errors import with_place
from trainer_core.stacks import end_hard
from trainer_core.watch import GRACE, LOOK, patience
from trainer_core.wire import Wire, read, written

if TYPE_CHECKING:
    from trainer_core.roll_call import Place

# What is said: where it stands, and what is wrong, follow.
_HERE, _READY, _FAILED = "here ", "ready", "failed "
_LEAVING = GRACE + 2 * LOOK  # seconds until all have heard of a failure, and have ended


@attrs.frozen
class Failed:
    """What is wrong, for which all end."""

    texts: Sequence[str] = attrs.field(
        validator=deep_iterable(instance_of(str), instance_of((list, tuple)))
    )


@attrs.define(eq=False)
class Peer:
    """Another process, as long as JAX does not connect it with this one.

    Attributes:
        process: its index.
        host: its machine.
        wire: by which it met this one.
        unheard: signs of life that were due since the last.
        stands: where its code was then; empty where JAX connects it.
        is_ready: whether it needs no other any more.
    """

    process: int
    host: str
    wire: Wire
    unheard: int = 0
    stands: str = ""
    is_ready: bool = False

    def __str__(self) -> str:
        return f"process {self.process} ({self.host})"


@contextmanager
def connecting(place: Place, peers: Sequence[Peer], directory: Path) -> Iterator[Connecting]:
    """Look after the others while entered, and end this process where one does not come.

    Args:
        place: of this process.
        peers: as the roll call found them.
        directory: of the run, for the stacks of this process when it ends.
    """
    found = Connecting(place, peers, directory)
    looking = threading.Thread(target=found.look, name="connecting", daemon=True)
    looking.start()
    try:
        yield found
    except BaseException as error:
        found.end(f"process {place.process} failed: {type(error).__name__}: {error}")
        # Until the others have heard it, and ended: see `_end_hard`.
        looking.join(_LEAVING)
        raise
    found.end()


@attrs.define(eq=False)
class Connecting:
    """See `connecting`."""

    place: Place
    peers: Sequence[Peer]
    directory: Path
    _connected: threading.Event = attrs.field(factory=threading.Event, init=False)
    _over: threading.Event = attrs.field(factory=threading.Event, init=False)
    _thread: int = attrs.field(factory=threading.get_ident, init=False)  # which connects

    def connected(self) -> None:
        """JAX has connected the processes; their devices may take as long as they need."""
        self._connected.set()

    def end(self, *failure: str) -> None:
        """Tell the others that this process is ready, or why it never will be."""
        self._over.set()
        self._say(_FAILED + written(Failed(failure)) if failure else _READY)
        for peer in self.peers:
            peer.wire.finish()

    def look(self) -> None:
        """Give signs of life and look for those of the others; then wait until these have left."""
        with selectors.DefaultSelector() as selector:
            try:
                problem = self._looked(selector)
            except Exception as error:  # nobody would look any more, and a hang be unnamed
                problem = [f"process {self.place.process} failed: {with_place(error)}"]
            if problem and not self._over.is_set():
                self._end_hard(problem, selector)
            until = time.monotonic() + self.place.timeout
            while selector.get_map() and time.monotonic() < until:
                self._heard(selector, LOOK)
        for peer in self.peers:
            peer.wire.close()

    def _looked(self, selector: selectors.BaseSelector) -> list[str]:
        """Return what is wrong, as soon as something is; nothing once this process is ready."""
        for peer in self.peers:
            selector.register(peer.wire.socket, selectors.EVENT_READ, peer)
        looks = 0
        # What came with the answer of the roll call is read, and no socket tells of it.
        problem = [each for peer in self.peers for each in self._taken(peer, peer.wire.unread())]
        while not (problem or self._over.is_set()):
            self._say(_HERE + self._stands)
            looks += 1
            problem = self._heard(selector, LOOK) or self._missed(looks)
        return problem

    @property
    def _most(self) -> int:
        return patience(self.place.timeout)

    def _say(self, line: str) -> None:
        for peer in self.peers:
            if not peer.is_ready:
                peer.wire.say(line)

    def _heard(self, selector: selectors.BaseSelector, seconds: float) -> list[str]:
        """Return what another says is wrong, within a while in which all should be heard."""
        problem: list[str] = []
        for peer in self.peers:
            peer.unheard += 1
        until = time.monotonic() + seconds
        while not problem and (left := until - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                peer = key.data
                peer.unheard = 0
                lines = peer.wire.lines()
                if lines is None:
                    selector.unregister(peer.wire.socket)
                    problem += [] if peer.is_ready else [self._left(peer)]
                problem += self._taken(peer, lines or [])
        return problem

    @staticmethod
    def _taken(peer: Peer, lines: Sequence[str]) -> list[str]:
        problem: list[str] = []
        for line in lines:
            peer.is_ready = peer.is_ready or line == _READY
            if line.startswith(_HERE):
                peer.stands = line.removeprefix(_HERE)
            if line.startswith(_FAILED):
                failure = read(line.removeprefix(_FAILED), Failed)
                problem += failure.texts if failure is not None else []
        return problem

    def _missed(self, looks: int) -> list[str]:
        waited_for = [peer for peer in self.peers if not peer.is_ready]
        longest = max((peer.unheard for peer in waited_for), default=0)
        if longest >= self._most:
            # All that fell silent together, whoever's last sign came first.
            return [self._silent(peer) for peer in waited_for if peer.unheard >= self._most / 2]
        # Process 0 hears of all, and tells the others; of each it has heard since it is late.
        is_late = all(looks - peer.unheard >= self._most for peer in waited_for)
        is_judge = self.place.process == 0 and not self._connected.is_set()
        return self._blocked(waited_for) if waited_for and is_late and is_judge else []

    def _end_hard(self, problem: Sequence[str], selector: selectors.BaseSelector) -> None:
        """End this process; process 0 tells the others, and waits until they have ended.

        It has what connects them: when it is gone, JAX aborts those that are still at it.
        """

        def leave() -> None:
            if self.place.process:
                return
            for key in [*selector.get_map().values()]:
                if key.data.unheard >= self._most / 2:
                    selector.unregister(key.fileobj)
            until = time.monotonic() + _LEAVING
            while selector.get_map() and time.monotonic() < until:
                self._heard(selector, LOOK / 10)

        self._say(_FAILED + written(Failed(problem)))
        end_hard(problem, self.directory, self.place.process, leave)

    def _silent(self, peer: Peer) -> str:
        return (
            f"{peer} gave no sign of life for {self._most * LOOK:g} seconds ([distributed] timeout "
            f"= {self.place.timeout}): it was stopped or killed, or its machine is gone; it was "
            f"last seen connecting, at {self.place.coordinator}; end what is left of it, and start "
            f"all processes again"
        )

    def _left(self, peer: Peer) -> str:
        return (
            f"{peer} ended while JAX connected the processes, at {self.place.coordinator}: it says "
            f"why, unless it was killed; start all processes again"
        )

    @property
    def _stands(self) -> str:
        """Where the thread that connects stands; empty where JAX has begun."""
        frame = sys._current_frames().get(self._thread)
        if frame is None or frame.f_globals["__name__"].partition(".")[0] in ("jax", "jaxlib"):
            return ""
        return f"{frame.f_code.co_filename}:{frame.f_lineno}, in {frame.f_code.co_name}"

    def _blocked(self, peers: Sequence[Peer]) -> list[str]:
        own = f"process {self.place.process} ({socket.gethostname()})"
        standing = {own: self._stands} | {str(peer): peer.stands for peer in peers}
        within = (
            f"within {self._most * LOOK:g} seconds ([distributed] timeout = {self.place.timeout})"
        )
        late = [
            f"{name} did not begin to connect {within}, and the others wait for it: it stands at "
            f"{where}"
            for name, where in standing.items()
            if where
        ]
        return late or [
            f"the processes met at {self.place.coordinator} and go on to hear of each other there, "
            f"but JAX did not connect them {within}: a proxy or a firewall may keep its "
            f"connections out"
        ]
