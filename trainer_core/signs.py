"""What the processes of a run leave for each other to read, in JAX's coordination service."""

from __future__ import annotations

import json
import socket
from typing import Any

import attrs

_HOST = socket.gethostname()


@attrs.frozen(kw_only=True)
class Sign:
    """A sign of life, which each process gives about once a second.

    Attributes:
        number: of this sign, from 1.
        phase: what the process does, by the hook `phase`; `step` is the last that it has made.
        passed: places in the loop that its main thread has passed; all pass the same ones.
        idle: signs since it passed one, used a processor, or its devices finished what they had;
            one that compiles does not stand still.
        computes: whether its devices are at something.
        meetings: how often it came to where all decide together.
    """

    number: int = 0
    phase: str = "starting"
    step: int = 0
    passed: int = 0
    idle: int = 0
    computes: bool = False
    meetings: int = 0
    host: str = _HOST

    @property
    def where(self) -> str:
        return f"{self.phase}, after step {self.step}" if self.step else self.phase


@attrs.frozen
class Failure:
    """A process that has failed: it says so itself, or hangs, which process 0 says of it."""

    process: int
    text: str
    hangs: bool = False

    def __str__(self) -> str:
        return self.text if self.hangs else f"process {self.process} failed: {self.text}"


@attrs.frozen
class Board:
    """The entries of one run; a later one of the same processes has another name.

    Every method asks process 0, and raises what JAX raises where that cannot be reached; where it
    is stopped, it does not return.
    """

    client: Any
    name: str
    process: int

    def give(self, sign: Sign) -> None:
        self.client.key_value_set(
            f"{self.name}/alive/{self.process}", json.dumps(attrs.asdict(sign)), True
        )

    def signs(self) -> dict[int, Sign]:
        """Return the last sign of each process that has given one."""
        return {index: Sign(**json.loads(text)) for index, text in self._all("alive").items()}

    def first_sign(self) -> Sign:
        """Return the last sign of process 0."""
        try:
            return Sign(**json.loads(self.client.key_value_try_get(f"{self.name}/alive/0")))
        except Exception as error:
            if "NOT_FOUND" in str(error):
                return Sign()
            raise

    def fail(self, failure: Failure) -> None:
        entry = json.dumps([failure.text, failure.hangs])
        self.client.key_value_set(f"{self.name}/failed/{failure.process}", entry, True)

    def failures(self) -> list[Failure]:
        """Return what the others have said, in order."""
        found = [Failure(index, *json.loads(text)) for index, text in self._all("failed").items()]
        others = [each for each in found if each.hangs or each.process != self.process]
        return sorted(others, key=lambda each: each.process)

    def part(self, seconds: float) -> None:
        """Wait until all processes are about to end."""
        self.client.wait_at_barrier(f"{self.name}/end", int(seconds * 1000))

    def close(self) -> None:
        self.client.key_value_set(f"{self.name}/closed/{self.process}", "", True)

    def leave(self) -> None:
        self.client.key_value_set(f"{self.name}/left/{self.process}", "", True)

    def closed(self) -> set[int]:
        """Return who has failed and said why, or is about to."""
        return set(self._all("closed")) | self.left()

    def left(self) -> set[int]:
        return set(self._all("left"))

    def _all(self, kind: str) -> dict[int, str]:
        found = self.client.key_value_dir_get(f"{self.name}/{kind}/")
        return {int(key.rpartition("/")[2]): text for key, text in found}
