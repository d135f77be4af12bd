"""A process that hangs is named by the others, which then end; JAX alone would abort them unnamed.

It is heard of less and less: one that is stopped (SIGSTOP), killed or cut off gives no sign of life
any more; one that waits for ever, for data or a lock, does, but falls behind the others, which wait
for it inside a computation; and all may wait for each other's devices. These are looked for in
threads, as the main one cannot be interrupted.
"""

from __future__ import annotations

import atexit
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import attrs

from trainer_core.errors import with_place
from trainer_core.signs import Board, Failure, Sign
from trainer_core.stacks import end_hard, stacks

LOOK = 1.0  # seconds between two signs of life
GRACE = 5.0  # seconds that the main thread has to end by itself, once another one has failed
_SPARE = 5.0  # seconds before the timeout: until all have heard of it, and have ended
_LEAST = 3  # signs that may always be missing
_CLOSE = 15  # looks after a failure, at least: to tell the others alone takes seconds
_MOMENT = 0.5  # seconds in which one says why it fails, and ends
_AT_WORK = 0.3  # of one processor; above it, a process does not stand still, but computes
# Where falling behind is judged. Elsewhere a process may well wait for long for what the others
# need not: a download, a disk, a compiler; there, only one without a sign of life hangs.
_IN_STEP = ("training", "evaluating")


def _is_done(result: Any) -> bool:
    """Whether a device has computed an array, or it was given to a call whose result is noted."""
    return bool(result.is_deleted() or result.is_ready())


def patience(timeout: float) -> int:
    """Return how many signs may be missing, so that all end within a timeout."""
    return max(_LEAST, int(max(timeout - _SPARE, timeout / 2) / LOOK))


@attrs.define(eq=False)
class Watch:
    """Gives this process's signs of life, and looks for those of the others.

    Process 0 looks at all of them, so that the cost grows with their number and not its square;
    the others look at process 0. Signs are counted and no clock is read, so that a process
    that was stopped itself, or a machine that slept, blames nobody when it goes on.

    Args:
        board: of this run.
        processes: how many there are.
        timeout: seconds in which a hang is noticed, and all have ended.
        directory: of the run, for the stacks of this process when it ends.
    """

    board: Board
    processes: int
    timeout: float
    directory: Path
    _sign: Sign = attrs.field(factory=Sign, init=False)
    _knows: threading.Event = attrs.field(factory=threading.Event, init=False)
    _over: threading.Event = attrs.field(factory=threading.Event, init=False)
    _lock: threading.Lock = attrs.field(factory=threading.Lock, init=False)
    _threads: list[threading.Thread] = attrs.field(factory=list, init=False)
    _ending: threading.Event = attrs.field(factory=threading.Event, init=False)
    _seen: dict[int, tuple[Sign, int]] = attrs.field(factory=dict, init=False)
    _missed: set[int] = attrs.field(factory=set, init=False)
    _first: Sign = attrs.field(factory=Sign, init=False)
    _unheard: int = attrs.field(default=0, init=False)
    _rests: bool = attrs.field(default=False, init=False)
    _given: deque[Any] = attrs.field(factory=deque, init=False)  # to the devices: the results
    _is_giving: bool = attrs.field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self._threads = [
            threading.Thread(target=self._kept, args=[work], name="watch", daemon=True)
            for work in (self._talk, self._guard)
        ]
        for thread in self._threads:
            thread.start()
        # Before JAX takes the client away, which it does by an earlier atexit.
        atexit.register(self._part)

    @property
    def patience(self) -> int:
        return patience(self.timeout)

    @property
    def main_knows(self) -> bool:
        return self._knows.is_set()

    def pass_by(self, phase: str | None = None, step: int | None = None, meets: int = 0) -> None:
        """Note how far the main thread has come; others read it from the next sign."""
        with self._lock:
            sign = self._sign
            self._sign = attrs.evolve(
                sign,
                phase=sign.phase if phase is None else phase,
                step=sign.step if step is None else step,
                passed=sign.passed + 1,
                meetings=sign.meetings + meets,
                idle=0,
            )

    @contextmanager
    def giving(self) -> Iterator[Callable[[Any], None]]:
        """While entered, the devices are given something to do; its result is to be noted.

        Some take it at once, and some only when there is room; then they are at it, too.
        """
        self._is_giving = True
        try:
            yield self._given.append
        finally:
            self._is_giving = False

    def fail(self) -> None:
        """The main thread knows of a failure, and closes the run; it has the timeout for it."""
        self._knows.set()

    def close(self) -> None:
        """The run is closed. After a failure all is over; else nobody is judged until the exit.

        What a process does meanwhile, such as a run of its own, is no business of the others. But
        JAX lets no process end before all do, and would wait there for one that hangs.
        """
        if self._knows.is_set():
            self.end()
        self._rests = True

    def end(self) -> None:
        """Give no more signs of life, and look for none."""
        self._over.set()
        atexit.unregister(self._part)

    def wait_for_end(self) -> None:
        """Return, unless a thread is ending this process: it has said why."""
        if self._ending.is_set():
            threading.Event().wait()

    def leave(self) -> None:
        """Say that this process is about to end hard; process 0 first waits for the others.

        It has what connects them: when it is gone, JAX aborts those that are still at it.
        """
        self._knows.set()
        self._last(self.board.leave, self.board.left)

    def fail_together(self) -> None:
        """The run has failed, and is closed; process 0 first waits until the others' are, likewise.

        A program of one's own may end as soon as it hears of the failure.
        """
        self.close()
        self._last(self.board.close, self.board.closed)

    def miss(self, process: int) -> None:
        """One that hangs or is gone; nobody waits for it any more."""
        self._missed.add(process)

    def _last(self, say: Callable[[], None], said: Callable[[], set[int]]) -> None:
        try:
            if self.board.process:
                say()
                return
            silent = {index for index, (_, looks) in self._seen.items() if looks >= _LEAST}
            deadline = time.monotonic() + LOOK + GRACE + 2 * LOOK
            while time.monotonic() < deadline:
                if len(said() | silent | self._missed) >= self.processes - 1:
                    break
                time.sleep(0.1)
            time.sleep(_MOMENT)
        except Exception:
            return

    def _part(self) -> None:
        self._seen.clear()
        self._unheard, self._rests = 0, False
        if not self._knows.is_set():
            with contextlib.suppress(Exception):  # JAX says what hinders it, in a moment
                self.board.part(self.timeout)
        self._over.set()
        for thread in self._threads:
            thread.join(GRACE)

    def _kept(self, work: Callable[[], None]) -> None:
        """End this process where a thread of the watch fails: a hang would be unnamed."""
        try:
            work()
        except Exception as error:
            if self._over.is_set():
                return
            failure = Failure(self.board.process, with_place(error))
            with contextlib.suppress(Exception):
                self.board.fail(failure)
            self._end_hard([str(failure)])

    def _talk(self) -> None:
        used = time.process_time()
        while not self._over.wait(LOOK):
            before, used = used, time.process_time()
            try:
                self._give(used - before)
                failures = self.board.failures()
                if self.board.process:
                    self._first = self.board.first_sign()
                elif not (failures or self._rests or self._knows.is_set()):
                    failures = self._judged(self.board.signs())
            except RuntimeError:  # of JAX, where process 0 cannot be reached
                continue  # the guard counts how often
            self._unheard = 0
            if failures and not self._knows.is_set():
                self._heed(failures)

    def _give(self, used: float) -> None:
        computes, has_moved = bool(self._given) or self._is_giving, used > _AT_WORK * LOOK
        while self._given and _is_done(self._given[0]):
            self._given.popleft()
            has_moved = True
        with self._lock:
            self._sign = attrs.evolve(
                self._sign,
                number=self._sign.number + 1,
                idle=0 if has_moved else self._sign.idle + 1,
                computes=computes,
            )
            sign = self._sign
        self.board.give(sign)

    def _guard(self) -> None:
        """End this process where process 0 is silent, or its own main thread does not close."""
        closing = 0
        while not (self._over.wait(LOOK) or self._ending.is_set()):
            self._unheard += 1
            if self.board.process and not self._rests and self._unheard >= self.patience:
                self._end_hard([self._silent(0, self._first)], says_so=False)
            closing = closing + 1 if self._knows.is_set() else 0
            if closing >= max(self.patience, _CLOSE):
                why = f"this process did not end within {closing * LOOK:g} seconds of its failure"
                self._end_hard([f"{why} ([distributed] timeout): {self._sign.where}"])

    def _judged(self, signs: Mapping[int, Sign]) -> list[Failure]:
        """What process 0 finds of those that hang; told to all."""
        for process in range(self.processes):
            sign = signs.get(process, Sign())
            before, looks = self._seen.get(process, (sign, -1))
            self._seen[process] = sign, 0 if sign.number != before.number else looks + 1
        furthest = max(sign.passed for sign, _ in self._seen.values())
        longest = max(looks for _, looks in self._seen.values())
        texts = {}
        for index, (sign, looks) in self._seen.items():
            # All that fell silent together are named together, whoever's last sign came first.
            if longest >= self.patience and looks >= self.patience / 2:
                texts[index] = self._silent(index, sign)
            elif sign.phase in _IN_STEP and sign.passed < furthest and sign.idle >= self.patience:
                texts[index] = self._stuck(index, sign)
        if not texts and all(self._waits(sign) for sign, _ in self._seen.values()):
            texts[0] = self._deadlocked()
        found = [Failure(index, text, hangs=True) for index, text in texts.items()]
        for each in found:
            self.board.fail(each)
        return found

    def _waits(self, sign: Sign) -> bool:
        return sign.phase in _IN_STEP and sign.computes and sign.idle >= self.patience

    def _heed(self, failures: Sequence[Failure]) -> None:
        """End this process, unless its main thread does: it may stand in a collective.

        Of a device, or of Orbax: the other never comes. One that hangs does not end by itself.
        """
        if not any(each.hangs for each in failures):
            self._unheard = -int(GRACE / LOOK)  # it does not ask meanwhile
            if self._knows.wait(GRACE):
                return
        self._end_hard([str(each) for each in failures])

    def _end_hard(self, lines: Sequence[str], says_so: bool = True) -> NoReturn:
        self._ending.set()
        last = self.leave if says_so else lambda: None
        end_hard(lines, self.directory, self.board.process, last)

    def _silent(self, process: int, sign: Sign) -> str:
        if not sign.number:
            return (
                f"process {process} did not begin this run within {self.patience * LOOK:g} seconds "
                f"of the others ([distributed] timeout = {self.timeout:g})"
            )
        return (
            f"process {process} ({sign.host}) gave no sign of life for {self.patience * LOOK:g} "
            f"seconds ([distributed] timeout = {self.timeout:g}): it was stopped or killed, or its "
            f"machine is gone; it was last seen {sign.where}"
        )

    def _stuck(self, process: int, sign: Sign) -> str:
        return (
            f"process {process} ({sign.host}) stands still, and the others wait for it, for "
            f"{self.patience * LOOK:g} seconds ([distributed] timeout = {self.timeout:g}): it is "
            f"{sign.where}; where, stands in {stacks(self.directory, process)}"
        )

    def _deadlocked(self) -> str:
        where = ", ".join(sorted({sign.where for sign, _ in self._seen.values()}))
        return (
            f"all processes stand still, for {self.patience * LOOK:g} seconds ([distributed] "
            f"timeout = {self.timeout:g}): {where}; their devices wait for each other (with CPUs, "
            f"give each process one), or are at something that takes longer than the timeout; "
            f"where, stands in {stacks(self.directory, 0).with_name('stacks-PROCESS.txt')}"
        )
