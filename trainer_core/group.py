"""The processes of a run, once they are connected: they agree, and hear of each other's failures.

All of it goes through JAX's coordination service, nothing through a device.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import threading
import time
from typing import Any

import attrs

from trainer_core.errors import RunError, TrainerError

MEETING = 2.0  # seconds that one who has failed waits for the others to hear of it
GRACE = 5.0  # seconds that one who has heard of a failure has to end by itself
LOOK = 1.0  # seconds between two looks for a failure
_FAILED, _LEFT = "trainer/failed/", "trainer/left/"


@attrs.define(eq=False)
class Group:
    """What the processes of a run say to each other.

    Attributes:
        client: of JAX's coordination service.
        process: the index of this one.
        processes: how many there are.
        timeout: seconds to wait for the others.
    """

    client: Any
    process: int
    processes: int
    timeout: float
    _round: int = attrs.field(default=0, init=False)
    _said: str = attrs.field(default="", init=False)
    _ends: threading.Event = attrs.field(factory=threading.Event, init=False)

    def __attrs_post_init__(self) -> None:
        watch = threading.Thread(target=self._watch, name="failures", daemon=True)
        watch.start()
        # Before JAX takes the client away, which it does by an earlier atexit.
        atexit.register(watch.join)
        atexit.register(self._ends.set)

    def gather(self, value: Any, seconds: float | None = None) -> dict[int, Any]:
        """Return what each process gave, by its index; None counts as nothing.

        All processes call it, the same number of times. It costs two calls of the coordination
        service, a third where the value is not None, and waits for the slowest.

        Args:
            value: JSON.
            seconds: to wait for the others; by default the timeout.

        Raises:
            RunError: another process has failed, or did not come in time.
        """
        seconds = self.timeout if seconds is None else seconds
        try:
            found = self._meet(None if value is None else {"value": value}, seconds)
        except Exception as error:
            self._ends.set()
            raise RunError(self._why(error)) from error
        failed = {process: each["failed"] for process, each in found.items() if "failed" in each}
        if failed:
            self._ends.set()
            process = min(failed)
            raise RunError(f"process {process} failed: {failed[process]}")
        return {process: each["value"] for process, each in found.items()}

    def tell(self, error: BaseException) -> None:
        """Let the others know that this process has failed; marks an error that process 0 tells.

        Does nothing where the error is that another one has failed.
        """
        if self._ends.is_set():
            return
        self._ends.set()
        text = str(error) if isinstance(error, TrainerError) else f"{type(error).__name__}: {error}"
        absent = ""
        try:
            self.client.key_value_set(f"{_FAILED}{self.process}", text)
            self._meet({"failed": text}, MEETING)
        except Exception as silent:
            absent = _absent(silent)
        others = self._failures()
        error.is_told = others.get(0) == text  # type: ignore[attr-defined]
        notes = [
            f"process {each} failed: {others[each]}" for each in others if others[each] != text
        ]
        if absent and not others:
            notes = [f"no answer from process {absent}: it was killed, or hangs"]
        if isinstance(error, TrainerError):
            error.args = ("\n  ".join([text, *notes]),)
        else:
            error.__notes__ = [*getattr(error, "__notes__", ()), *notes]

    def leave(self) -> None:
        """Say that this process is about to end hard; process 0 first waits for the others.

        It has what connects them: when it is gone, JAX aborts those that are still at it.
        """
        self._ends.set()
        try:
            if self.process:
                self.client.key_value_set(f"{_LEFT}{self.process}", "")
                return
            deadline = time.monotonic() + LOOK + GRACE + MEETING
            while time.monotonic() < deadline:
                if len(self.client.key_value_dir_get(_LEFT)) == self.processes - 1:
                    break
                time.sleep(0.1)
            time.sleep(0.1)  # to end takes them a moment
        except Exception:
            return

    def _meet(self, entry: Any, seconds: float) -> dict[int, Any]:
        self._round += 1
        place = f"trainer/{self._round}/"
        if entry is not None:
            self.client.key_value_set(f"{place}{self.process}", json.dumps(entry))
        self.client.wait_at_barrier("trainer/meet", int(seconds * 1000))
        # All have read what was said at the meeting before.
        if self._said:
            self.client.key_value_delete(self._said)
        self._said = f"{place}{self.process}" if entry is not None else ""
        found = self.client.key_value_dir_get(place)
        return {int(key.rpartition("/")[2]): json.loads(text) for key, text in found}

    def _failures(self) -> dict[int, str]:
        try:
            found = self.client.key_value_dir_get(_FAILED)
        except Exception:
            return {}
        failures = {int(key.rpartition("/")[2]): text for key, text in found}
        return {key: failures[key] for key in sorted(failures) if key != self.process}

    def _why(self, error: Exception) -> str:
        if failures := self._failures():
            return "; ".join(f"process {each} failed: {failures[each]}" for each in failures)
        if absent := _absent(error):
            return (
                f"process {absent} did not come to where all processes decide together, within "
                f"{self.timeout:g} seconds ([distributed] timeout): it was killed, or hangs"
            )
        return f"the processes cannot reach each other any more: {error}"

    def _watch(self) -> None:
        """End this process where another one has failed and the main thread does not notice.

        It may stand in a collective of a device, or of Orbax, for which the other never comes.
        """
        while not self._ends.wait(LOOK):
            failures = self._failures()
            if not failures or self._ends.wait(GRACE):
                continue
            from trainer_core.cli.failures import say_error

            for process, text in failures.items():
                say_error(f"process {process} failed: {text}")
            self.leave()
            os._exit(1)


def _absent(error: Exception) -> str:
    """The indices that a failed barrier of JAX names, as "1, 3"."""
    found = sorted({int(each) for each in re.findall(r"/task:(\d+)", str(error))})
    return ", ".join(map(str, found))
