"""Runs of several processes on this machine, each a `trainer` command of its own."""

from __future__ import annotations

import contextlib
import random
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import attrs
from command import TRAINER, environment

LIMIT = 180  # seconds after which a run is taken for hung


@attrs.frozen
class Ended:
    """How one process ended: its exit code, what it wrote, and after how many seconds."""

    code: int
    out: str
    err: str
    seconds: float


def free_port() -> int:
    """Return a port that is free, also when a process that still imports comes to take it.

    Of those that a system gives to any connection, another one might have it by then.
    """
    while True:
        port = random.SystemRandom().randrange(10000, 16000)
        with contextlib.suppress(OSError), socket.create_server(("", port)):
            return port


def together(
    count: int,
    *arguments: str,
    folder: Path,
    devices: int = 1,
    each: Mapping[int, Sequence[str]] | None = None,
    variables: Mapping[int, Mapping[str, str]] | None = None,
) -> list[Ended]:
    """Run a command of `count` processes to its end.

    Args:
        count: how many.
        arguments: the command, without `[distributed]`.
        folder: where they run.
        devices: simulated, of each process.
        each: further arguments of single processes.
        variables: of the environment, of single processes.
    """
    with started(
        count, *arguments, folder=folder, devices=devices, each=each, variables=variables
    ) as running:
        return ended(running, folder)


@contextmanager
def started(
    count: int,
    *arguments: str,
    folder: Path,
    devices: int = 1,
    each: Mapping[int, Sequence[str]] | None = None,
    variables: Mapping[int, Mapping[str, str]] | None = None,
    program: Sequence[str] = (TRAINER,),
) -> Iterator[list[subprocess.Popen[str]]]:
    """As `together`, while they run; `program` is what is given the arguments."""
    place = [f"distributed.coordinator=localhost:{free_port()}", f"distributed.processes={count}"]
    shared = {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # they run for less time than they compile
    }
    processes = []
    try:
        for index in range(count):
            own = [*place, f"distributed.process={index}", *(each or {}).get(index, ())]
            out = (folder / f"out-{index}").open("w")
            err = (folder / f"err-{index}").open("w")
            with out, err:
                processes.append(
                    subprocess.Popen(
                        [*program, *arguments, *own],
                        cwd=folder,
                        env=environment(**{**shared, **(variables or {}).get(index, {})}),
                        stdout=out,
                        stderr=err,
                        text=True,
                    )
                )
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def ended(processes: Sequence[subprocess.Popen[str]], folder: Path) -> list[Ended]:
    """Wait for the end of all."""
    began = time.monotonic()
    found = []
    for index, process in enumerate(processes):
        code = process.wait(timeout=max(1.0, LIMIT - (time.monotonic() - began)))
        out, err = ((folder / f"{name}-{index}").read_text() for name in ("out", "err"))
        found.append(Ended(code, out, err, time.monotonic() - began))
    return found
