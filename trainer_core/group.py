"""The processes of a run, once they are connected: they agree, and hear of each other's failures.

All of it goes through JAX's coordination service, nothing through a device.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import attrs

from trainer_core.errors import RunError, TrainerError, UserError, lines_of
from trainer_core.plugin import hookimpl
from trainer_core.signs import Board, Failure, Sign
from trainer_core.watch import GRACE, LOOK, Watch

MEETING = 2.0  # seconds that one who has failed waits for the others to hear of it
MISTAKE = 5.0  # the same where it is the user's: the others find it too, and process 0 says it
SURE = 3.0  # seconds more, until one who gives no sign of life is said to: it may be very busy


@attrs.define(eq=False)
class Group:
    """What the processes of a run say to each other, and who watches over them.

    Attributes:
        client: of JAX's coordination service.
        process: the index of this one.
        processes: how many there are.
        timeout: seconds to wait for the others.
        directory: of the run.
        number: which run of these processes it is.
    """

    client: Any
    process: int
    processes: int
    timeout: float
    directory: Path
    number: int = 0
    _round: int = attrs.field(default=0, init=False)
    _said: str = attrs.field(default="", init=False)
    _board: Board = attrs.field(init=False)
    _watch: Watch = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._board = Board(self.client, self._name, self.process)
        self._watch = Watch(self._board, self.processes, self.timeout, self.directory)

    def pass_by(self, phase: str | None = None, step: int | None = None) -> None:
        """Note what this process does now; all processes pass by the same places.

        Where it hangs, the others name what was noted last. It costs microseconds.
        """
        self._watch.pass_by(phase, step)

    def watched(self, compute: Callable[..., Any]) -> Callable[..., Any]:
        """Return a compiled function of which each call is a sign of life, once it is done."""
        import jax

        def watched(*given: Any) -> Any:
            with self._watch.giving() as note:
                results = compute(*given)
                note(jax.tree.leaves(results)[-1])  # of a step a metric: its state is given away
            return results

        return watched

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
            self._watch.fail()
            raise RunError(self._why(error, seconds)) from error
        failed = {process: each["failed"] for process, each in found.items() if "failed" in each}
        if failed:
            self._watch.fail()
            process = min(failed)
            raise RunError(str(Failure(process, failed[process])))
        return {process: each["value"] for process, each in found.items()}

    def tell(self, error: BaseException) -> None:
        """Let the others know that this process has failed; marks an error that process 0 tells.

        What is known of the others is added to its notes. Where it comes from JAX, that may be
        why: it is said first, or is the error's cause.
        Does nothing where the error is that another one has failed.
        """
        self._watch.wait_for_end()
        if self._watch.main_knows:
            return
        self._watch.fail()
        text = str(error) if isinstance(error, TrainerError) else f"{type(error).__name__}: {error}"
        before, met = self._signs(), True
        seconds = MISTAKE if isinstance(error, UserError) else MEETING
        try:
            self._board.fail(Failure(self.process, text))
            self._meet({"failed": text}, seconds)
        except Exception:
            met = False
        others = self._failures()
        failed = [each for each in others if each.text != text]
        said = {each.process for each in others}
        gone, busy = ([], []) if met else self._absent(before, said, seconds)
        error.is_told = Failure(0, text) in others  # type: ignore[attr-defined]
        # First who fell silent: that others fail beside it may well be the consequence.
        notes = [*gone, *busy, *map(str, failed)]
        alike = f"{type(error).__name__}:"
        own = [str(each) for each in failed if not each.text.startswith(alike)]
        causes = [*gone, *own] if _is_of_jax(error) else []
        if isinstance(error, TrainerError):
            rest = [note for note in notes if note not in causes]
            error.args = ("\n  ".join([*lines_of(text, causes), *rest]),)
            return
        error.__notes__ = [*getattr(error, "__notes__", ()), *notes]
        if causes:
            known = RunError("\n  ".join(causes))
            known.__cause__, error.__cause__ = error.__cause__, known

    def fail_together(self) -> None:
        """The run has failed, and is closed; see `Watch.fail_together`."""
        self._watch.fail_together()

    def leave(self) -> None:
        """Say that this process is about to end hard; see `Watch.leave`."""
        self._watch.leave()

    def close(self) -> None:
        """The run is closed; see `Watch.close`."""
        self._watch.close()

    def end(self) -> None:
        """Another run of these processes begins."""
        self._watch.end()

    @property
    def _name(self) -> str:
        return f"trainer/{self.number}"

    def _meet(self, entry: Any, seconds: float) -> dict[int, Any]:
        self._round += 1
        self._watch.pass_by(meets=1)
        place = f"{self._name}/{self._round}/"
        if entry is not None:
            self.client.key_value_set(f"{place}{self.process}", json.dumps(entry))
        self.client.wait_at_barrier(f"{self._name}/meet", int(seconds * 1000))
        # All have read what was said at the meeting before.
        if self._said:
            self.client.key_value_delete(self._said)
        self._said = f"{place}{self.process}" if entry is not None else ""
        found = self.client.key_value_dir_get(place)
        return {int(key.rpartition("/")[2]): json.loads(text) for key, text in found}

    def _failures(self) -> list[Failure]:
        try:
            return self._board.failures()
        except Exception:
            return []

    def _signs(self) -> Mapping[int, Sign]:
        try:
            return self._board.signs()
        except Exception:
            return {}

    def _why(self, error: Exception, seconds: float) -> str:
        if failures := self._failures():
            return "; ".join(map(str, failures))
        if absent := self._late(self._signs()):
            where = [f"process {index} ({sign.host}) is {sign.where}" for index, sign in absent]
            return (
                f"not all processes came to where they decide together, within {seconds:g} seconds "
                f"([distributed] timeout): {'; '.join(where)}"
            )
        return f"the processes cannot reach each other any more: {error}"

    def _absent(
        self, before: Mapping[int, Sign], failed: Collection[int], seconds: float
    ) -> tuple[list[str], list[str]]:
        """Who did not come to hear of a failure, and told none: the gone, and the busy."""

        def is_silent(index: int, sign: Sign) -> bool:
            return sign.number == before.get(index, Sign()).number

        deadline = time.monotonic() + SURE
        late = self._late(self._signs())
        while any(is_silent(*each) for each in late) and time.monotonic() < deadline:
            time.sleep(LOOK / 4)
            late = self._late(self._signs())
        gone, busy = [], []
        for index, sign in late:
            if index in failed:
                continue
            who = f"process {index} ({sign.host}), {sign.where},"
            if is_silent(index, sign):
                self._watch.miss(index)
                silent = f"gave no sign of life for {seconds + SURE:g} seconds"
                gone.append(f"{who} {silent}: it hangs, or was killed")
            else:
                busy.append(f"{who} is told, and ends within {LOOK + GRACE:g} seconds")
        return gone, busy

    def _late(self, signs: Mapping[int, Sign]) -> list[tuple[int, Sign]]:
        every = [(index, signs.get(index, Sign())) for index in range(self.processes)]
        return [
            (index, sign)
            for index, sign in every
            if index != self.process and sign.meetings < self._round
        ]


def _is_of_jax(error: BaseException | None) -> bool:
    """Whether JAX gave something up: maybe as one of the processes that share it is gone."""
    import jax

    return error is not None and (
        isinstance(error, jax.errors.JaxRuntimeError) or _is_of_jax(error.__cause__)
    )


class Whereabouts:
    """The core's observer that notes the phases of a run of several processes."""

    @hookimpl(tryfirst=True)
    def phase(self, run: Any, name: str) -> None:
        run.pass_by(name)

    @hookimpl
    def close(self, run: Any) -> None:
        if run.group is not None:
            run.group.close()
