"""The processes of a run meet once before JAX connects them, so that what is wrong can be said.

JAX alone would end a process by `abort()`, without a name, where its coordinator cannot be
reached or another process is missing.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, NoReturn

import attrs
from attrs.validators import deep_mapping, ge, instance_of

from trainer_core.connecting import Peer
from trainer_core.errors import UserError, listed
from trainer_core.run import StopRequest
from trainer_core.signals import Interrupted
from trainer_core.wire import Wire, read, written

logger = logging.getLogger("trainer_core")
_RETRY = 0.2  # seconds between two attempts to reach process 0
_READ = 5.0  # seconds that one who has connected may take to say who it is
_LATE = 5.0  # seconds that process 0 waits, once something is wrong, for those who are late
_LOOK = 0.5  # seconds between two looks at whether one was asked to stop
_LEAVE = 10.0  # seconds that a stop waits for those who are on their way, to tell them
_SAY = 10.0  # seconds after which a process says again for whom it waits
_SPARE = 0.25  # of the timeout, five seconds at most: until the answer is there, on a busy machine


@attrs.frozen(kw_only=True)
class Place:
    """Where a process stands among the others.

    Attributes:
        coordinator: HOST:PORT of process 0.
        process: the index of this one, below `processes`.
        timeout: seconds to wait for the others.
    """

    coordinator: str
    processes: int
    process: int
    timeout: int

    @property
    def host(self) -> str:
        return self.coordinator.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        return int(self.coordinator.rpartition(":")[2])

    @property
    def is_loopback(self) -> bool:
        return self.host in ("localhost", "::1") or self.host.startswith("127.")


_STOPPING = "stopping "  # said by one that was asked to stop while it waits; why, follows
_TAKEN = "taken"  # by process 0, as soon as it has read a card: it is a trainer
_NO_ANSWER = "what is there does not answer: it is no trainer, hangs, or has ended"
_index = (instance_of(int), ge(0))


@attrs.frozen(kw_only=True)
class Card:
    """What a process says of itself when it comes.

    Attributes:
        processes: how many there are, as it was told.
        process: its index.
        host: its machine.
        same: what must not differ from process 0: title to key to JSON value.
        seconds: that are left until it needs its answer.
    """

    processes: int = attrs.field(validator=_index)
    process: int = attrs.field(validator=_index)
    host: str = attrs.field(validator=instance_of(str))
    same: dict[str, dict[str, Any]] = attrs.field(
        validator=deep_mapping(instance_of(str), instance_of(dict), instance_of(dict))
    )
    seconds: float = attrs.field(validator=instance_of((int, float)))

    def __attrs_post_init__(self) -> None:
        if self.process >= self.processes:
            raise ValueError("its index is too large")


@attrs.frozen(kw_only=True)
class Answer:
    """What process 0 says to each when all have come.

    Attributes:
        problem: for which all of them end; empty where they go on.
        stop: why all of them stop, with nothing done; empty likewise.
        host: its machine.
    """

    problem: str = attrs.field(validator=instance_of(str))
    stop: str = attrs.field(validator=instance_of(str))
    host: str = attrs.field(validator=instance_of(str))


@attrs.define
class Waiting:
    """How long a process waits for others, and when it says again for whom."""

    place: Place
    deadline: float
    _said: float = attrs.field(factory=time.monotonic, init=False)

    @property
    def is_over(self) -> bool:
        return time.monotonic() >= self.deadline

    @property
    def left(self) -> float:
        """Seconds; something that has come is read in the last moment, too."""
        return max(0.01, self.deadline - time.monotonic())

    @property
    def pause(self) -> float:
        """Seconds until it looks again whether to stop or to say something, or all is over."""
        return max(0.01, min(self.left, _LOOK))

    def shorten(self, seconds: float) -> None:
        """Wait for so long at most, from now on."""
        self.deadline = min(self.deadline, time.monotonic() + seconds)

    def say(self, processes: str, reason: str = "") -> None:
        """Say for whom it waits, if it is time."""
        if self.is_over or time.monotonic() < self._said + _SAY:
            return
        self._said = time.monotonic()
        logger.warning(
            "process %d waits at %s for process %s, for %.0f seconds more (%s)%s",
            self.place.process,
            self.place.coordinator,
            processes,
            self.left,
            "[distributed] timeout",
            reason and f": {reason}",
        )


def roll_call(
    place: Place, same: Mapping[str, Mapping[str, Any]], stopping: StopRequest
) -> list[Peer]:
    """Return once all processes have come, and are the same; process 0 waits for the others.

    Args:
        place: of this process.
        same: what must not differ from process 0: title to key to JSON value.
        stopping: whether this process was asked to stop; where another was, it is, too.

    Returns:
        whom this process goes on to hear of: process 0 of all the others, these of process 0.

    Raises:
        UserError: with one text on every process that came; process 0 says it.
        Interrupted: one was asked to stop before all had come.
    """
    waiting = Waiting(place, time.monotonic() + place.timeout)
    card = Card(
        processes=place.processes,
        process=place.process,
        host=socket.gethostname(),
        same=json.loads(json.dumps(same, default=str)),
        seconds=place.timeout,
    )
    if place.process == 0:
        return _call(place, card, waiting, stopping)
    return [_answer(place, card, waiting, stopping)]


def _call(place: Place, own: Card, waiting: Waiting, stopping: StopRequest) -> list[Peer]:
    came: list[tuple[Card, Wire]] = []
    problem = ""
    with ExitStack() as stack:
        server = stack.enter_context(_server(place))
        while len(came) + 1 < place.processes:
            _hear_of_a_stop(came, stopping)
            if stopping:  # those who are still on their way shall hear it, too
                waiting.shorten(_LEAVE)
            try:
                server.settimeout(waiting.pause)
                wire = Wire(stack.enter_context(server.accept()[0]))
            except TimeoutError:
                cards = [own, *(each for each, _ in came)]
                if not waiting.is_over:
                    if not stopping:
                        waiting.say(_some(_absent(place, cards)))
                    continue
                problem = problem or ("" if stopping else _missing(place, cards))
                break
            card = _card(wire, min(_READ, waiting.left))
            if card is None:
                wire.close()  # somebody else's
                continue
            wire.say(_TAKEN)
            # One that is gone may be started again, and comes once more.
            for each in [each for each in came if each[1].has_left()]:
                each[1].close()
                came.remove(each)
            wrong = problem or _wrong(card, [own, *(each for each, _ in came)])
            came.append((card, wire))
            # Each gets its answer within its own timeout, though it began to wait earlier.
            waiting.shorten(card.seconds)
            if wrong and not problem:
                problem = wrong
                waiting.shorten(_LATE)
        answer = Answer(problem=problem, stop=stopping.reason, host=own.host)
        for _, wire in came:
            wire.say(written(answer))
        if problem:
            raise UserError(problem)
        if answer.stop:
            raise Interrupted
        stack.pop_all()
        server.close()
    return [Peer(card.process, card.host, wire) for card, wire in came]


def _hear_of_a_stop(came: list[tuple[Card, Wire]], stopping: StopRequest) -> None:
    for card, wire in came:
        for line in wire.come():
            if line.startswith(_STOPPING):
                stopping.set(f"{line.removeprefix(_STOPPING)} of process {card.process}")


def _card(wire: Wire, seconds: float) -> Card | None:
    try:
        return read(wire.line(seconds) or "", Card)
    except TimeoutError:
        return None


def _answer(place: Place, own: Card, waiting: Waiting, stopping: StopRequest) -> Peer:
    spare = min(5.0, _SPARE * place.timeout)
    while True:
        try:
            wire = Wire(_connected(place, min(_READ, waiting.left)))
            wire.say(written(attrs.evolve(own, seconds=waiting.left - spare)))
            answer = _answered(wire, waiting, stopping)
            if answer is not None and not (answer.problem or answer.stop):
                return Peer(0, answer.host, wire)
            wire.close()
            if answer is not None:
                _end_as_told(answer, stopping)
            reason = _NO_ANSWER
        except OSError as error:
            reason = str(error.strerror or error).lower()
        if stopping:
            waiting.shorten(_LEAVE)
        if time.monotonic() + _RETRY > waiting.deadline:
            if stopping:
                raise Interrupted
            raise UserError(_unreachable(place, reason), "distributed.coordinator")
        waiting.say("0", reason)
        time.sleep(_RETRY)


def _end_as_told(answer: Answer, stopping: StopRequest) -> NoReturn:
    if answer.problem:
        told = UserError(answer.problem)
        told.is_told = True
        raise told
    stopping.set(answer.stop)
    raise Interrupted


def _answered(wire: Wire, waiting: Waiting, stopping: StopRequest) -> Answer | None:
    """Return what process 0 says; None where what is there says nothing of the kind."""
    is_taken = has_said = False
    while not waiting.is_over:
        if stopping and not has_said:
            has_said = True
            wire.say(f"{_STOPPING}{stopping.reason}")
            waiting.shorten(2 * _LEAVE)
        try:
            line = wire.line(waiting.pause)
        except TimeoutError:
            if not is_taken:  # else process 0 says for whom it waits itself
                waiting.say("0", _NO_ANSWER)
            continue
        if line != _TAKEN:
            return read(line or "", Answer)
        is_taken = True
    return None


def _connected(place: Place, seconds: float) -> socket.socket:
    found = socket.create_connection((place.host, place.port), timeout=seconds)
    # Where nobody listens on a port of this machine, its own end may be given that very port.
    if found.getsockname() == found.getpeername():
        found.close()
        raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
    return found


def _server(place: Place) -> socket.socket:
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(
                ("::", place.port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=4096
            )
        return socket.create_server(("", place.port), backlog=4096)
    except OSError as error:
        raise UserError(
            f"process 0 cannot listen on port {place.port} of this machine "
            f"({str(error.strerror or error).lower()}): another run may use it; give another "
            f"port in [distributed] coordinator = {place.coordinator!r}",
            "distributed.coordinator",
        ) from error


def _wrong(card: Card, cards: list[Card]) -> str:
    """What is wrong with one who came, in view of those before, of whom process 0 is the first."""
    first, name = cards[0], f"process {card.process} ({card.host})"
    if card.processes != first.processes:
        return (
            f"[distributed] processes = {card.processes} on {name}, and "
            f"{first.processes} on process 0 ({first.host})"
        )
    for other in cards:
        if other.process == card.process:
            return (
                f"two processes have [distributed] process = {card.process}, on "
                f"{other.host} and {card.host}; each needs an index of its own"
            )
    for title, values in first.same.items():
        given = card.same.get(title, {})
        # What was chosen before its settings.
        for key in sorted({*values, *given}, key=lambda key: (not key.endswith(".use"), key)):
            if values.get(key) != given.get(key):
                return (
                    f"{name} has another {title} than process 0 ({first.host}): {key} is "
                    f"{_shown(given, key)} there, and {_shown(values, key)} on process 0; it must "
                    f"be the same on all"
                )
    return ""


def _absent(place: Place, cards: list[Card]) -> list[str]:
    came = {card.process for card in cards}
    return [str(index) for index in range(place.processes) if index not in came]


def _some(names: list[str]) -> str:
    return f"{', '.join(names[:20])}{', …' if len(names) > 20 else ''}"


def _missing(place: Place, cards: list[Card]) -> str:
    came = {card.process: card.host for card in cards}
    missing = _absent(place, cards)
    text = (
        f"{len(missing)} of {place.processes} processes did not come to {place.coordinator} within "
        f"{place.timeout} seconds ([distributed] timeout): process {_some(missing)}"
    )
    if place.is_loopback:
        text += f"; {place.host} can only be reached on this machine: give the host's own name"
    return f"{text}; these came:" + listed([f"process {i} on {came[i]}" for i in sorted(came)])


def _unreachable(place: Place, reason: str) -> str:
    text = (
        f"process {place.process} could not reach process 0 at {place.coordinator} within "
        f"{place.timeout} seconds ([distributed] timeout): {reason}"
    )
    if place.is_loopback:
        text += (
            f"; {place.host} is this machine itself ({socket.gethostname()}): if process 0 runs on "
            f"another one, give that one's name"
        )
    return text


def _shown(values: Mapping[str, Any], key: str) -> str:
    return json.dumps(values[key]) if key in values else "not set"
