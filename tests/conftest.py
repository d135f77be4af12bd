"""What the core's tests share: recipes of the small models, and processes that run some of them."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from trainer_core.threads import threads_for

# Before jax is imported. The CPU, unless told otherwise, whatever the machine has: the bounds are
# those of float32 on it, and bitwise equality is promised there. And a program that several
# tests compile, or the processes that they start, is compiled once.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _cache = tempfile.TemporaryDirectory(prefix="trainer-core-tests-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

# Where a shell runs the tests in its background they ignore Ctrl-C, as would what they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Recipes name `models:Perceptron`, and pytest imports tests without touching the path.
sys.path.insert(0, str(Path(__file__).parent))

_OUTCOMES = "TRAINER_CORE_TESTS_OUTCOMES"  # set in another process of tests: where to write
# By the marker of the tests that run in it, one after the other: the simulated devices of each.
_OTHERS = {"eight_devices": 8, "aside": 1}

Recipe = Callable[..., dict[str, Any]]


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """Return `programs.recipe` for a run in a folder of this test."""
    import programs

    def make(**tables: Mapping[str, Any]) -> dict[str, Any]:
        return programs.recipe(**{**tables, "run": {**folder, **tables.get("run", {})}})

    folder = {"directory": str(tmp_path / "run")}
    return make


@pytest.fixture(scope="module")
def quick_compiles() -> Iterator[None]:
    """Compile without most optimizations: these programs run for less time than they compile."""
    import jax

    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def user_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Path]]:
    """Return a function that writes a user's file beside the recipes of a test."""
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", list(sys.path))
    folder = str(tmp_path.resolve())

    def write(name: str, source: str) -> Path:
        path = tmp_path / name
        path.write_text(source)
        return path

    yield write
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(folder):
            del sys.modules[name]


def pytest_configure(config: pytest.Config) -> None:
    both = "one process for all such tests of a session. Fixtures are set up in both."
    config.addinivalue_line(
        "markers",
        f"eight_devices: runs in another process, which has eight simulated devices; {both}",
    )
    config.addinivalue_line(
        "markers",
        "aside: long, at peace with other work, and quickly set up: where all tests run it does "
        f"in another process, after those of eight devices; {both}",
    )
    config.stash[_others] = None
    config.pluginmanager.register(_Between())  # for the tests of plugins too, unlike what is here


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Last, so that the other processes are done, or nearly, when this one asks for outcomes.
    places = [None, *_OTHERS]
    items.sort(key=lambda item: places.index(_place(item)))


def pytest_collection_finish(session: pytest.Session) -> None:
    # Not under xdist, whose workers know only at run time which tests are theirs.
    if _OUTCOMES not in os.environ and "PYTEST_XDIST_WORKER" not in os.environ:
        _start(session)


def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    place = _place(pyfuncitem)
    if place is None or _OUTCOMES in os.environ:
        return None
    failure = _start(pyfuncitem.session).outcome(place, pyfuncitem.nodeid)
    if failure is not None:
        pytest.fail(f"in another process ({place}):\n{failure}", pytrace=False)
    return True


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if _OUTCOMES in os.environ and (report.when == "call" or report.failed):
        failure = report.longreprtext if report.failed else None
        with Path(os.environ[_OUTCOMES]).open("a") as file:
            file.write(json.dumps([report.nodeid, failure]) + "\n")


def pytest_sessionfinish(session: pytest.Session) -> None:
    others = session.config.stash[_others]
    if others is not None:
        others.end()


def _place(item: pytest.Item) -> str | None:
    """Return the marker of the other process in which a test runs; None: it runs in this one."""
    if item.get_closest_marker("eight_devices"):
        return "eight_devices"
    all_run = item.config.args_source is pytest.Config.ArgsSource.TESTPATHS
    return "aside" if all_run and item.get_closest_marker("aside") else None


class _Between:
    """What happens between the tests of two files."""

    def pytest_collection_finish(self) -> None:
        self._freeze()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self, item: pytest.Item, nextitem: pytest.Item | None) -> Any:
        yield
        if nextitem is None or nextitem.path != item.path:
            self._freeze()
            others = item.config.stash[_others]
            if others is not None:
                others.go_on()

    def _freeze(self) -> None:
        """Keep what is there for good, such as every import, from the garbage collector.

        Whoever collects, as a checkpoint that cannot be read does, would go through all of it.
        """
        gc.collect()
        gc.freeze()


class _Child:
    """A run of pytest on some tests, in a process with simulated devices."""

    def __init__(self, root: Path, devices: int, tests: list[str]) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="trainer-core-tests-")
        self.outcomes = Path(self.folder.name, "outcomes")
        self.log = Path(self.folder.name, "log")
        flags = os.environ.get("XLA_FLAGS", "")
        simulated = {
            **threads_for(devices),
            "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={devices}",
        }
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", "", *tests],
                cwd=root,
                env={
                    **os.environ,
                    **(simulated if devices > 1 else {}),
                    _OUTCOMES: str(self.outcomes),
                },
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def outcome(self, test: str) -> str | None:
        """Wait for the process, and return how a test failed; None where it passed."""
        self.process.wait(timeout=900)
        lines = self.outcomes.read_text().splitlines() if self.outcomes.exists() else []
        outcomes: dict[str, str | None] = dict(json.loads(line) for line in lines)
        return outcomes[test] if test in outcomes else self.log.read_text()

    def end(self) -> None:
        self.process.terminate()
        self.process.wait()
        self.folder.cleanup()


class _Others:
    """The other processes of a session, one after the other."""

    def __init__(self, session: pytest.Session) -> None:
        self.root = session.config.rootpath
        self.waiting: dict[str, list[str]] = {place: [] for place in _OTHERS}
        for item in session.items:
            if (place := _place(item)) is not None:
                self.waiting[place].append(item.nodeid)
        self.waiting = {place: tests for place, tests in self.waiting.items() if tests}
        self.children: dict[str, _Child] = {}

    def go_on(self) -> None:
        """Start the next, where the one before is done."""
        is_busy = any(child.process.poll() is None for child in self.children.values())
        if self.waiting and not is_busy:
            place = next(iter(self.waiting))
            tests = self.waiting.pop(place)
            self.children[place] = _Child(self.root, _OTHERS[place], tests)

    def outcome(self, place: str, test: str) -> str | None:
        """Wait for the process in which a test runs, and return how it failed, if it did."""
        while place not in self.children:
            for child in self.children.values():
                child.process.wait(timeout=900)
            self.go_on()
        return self.children[place].outcome(test)

    def end(self) -> None:
        for child in self.children.values():
            child.end()


_others = pytest.StashKey[_Others | None]()


def _start(session: pytest.Session) -> _Others:
    others = session.config.stash[_others]
    if others is None:
        others = session.config.stash[_others] = _Others(session)
        if not session.config.option.collectonly:
            others.go_on()
    return others
