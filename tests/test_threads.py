"""Simulated devices get the threads that their collectives need; nothing else changes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest
from command import PERCEPTRON, environment
from processes import together

from trainer_core import threads as threads_module
from trainer_core.threads import enough_threads, threads_for

# How many threads there are while a run trains, and what its children would find.
COUNT = """
import json, os, sys
from pathlib import Path
from trainer_core import fit, hookimpl, plugin

@plugin
class Count:
    @hookimpl
    def start(self):
        status = Path("/proc/self/status").read_text()
        found = {"threads": int(status.split("Threads:")[1].split()[0])}
        print(json.dumps({**found, "variable": os.environ.get("PJRT_NPROC")}))

if __name__ == "__main__":
    fit({"model": {"use": "models:Perceptron"}, "data": {"use": "models:Examples"},
         "run": {"steps": 1}, "checkpoint": {"use": "none"},
         "plugins": {"progress": {"style": "quiet"}, "count": {"use": "count_threads:Count"}}})
"""


@pytest.fixture(autouse=True)
def no_number_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PJRT_NPROC", "NPROC"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("devices", "cores", "expected"),
    # A pool of one thread for each device is what stands still, also where there are as many cores.
    [(1, 1, None), (8, 16, None), (8, 2, "64"), (8, 8, "64"), (100, 2, "512"), (1000, 2, "1000")],
)
def test_they_are_more_where_there_are_no_more_cores_than_devices(
    devices: int, cores: int, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads_module, "_cores", lambda: cores)
    assert threads_for(devices).get("PJRT_NPROC") == expected
    monkeypatch.setenv("NPROC", "9")
    assert threads_for(devices) == {}


@pytest.mark.parametrize(
    ("devices", "processes", "expected"), [(1, 1, None), (1, 2, "1"), (1, 64, "1"), (2, 2, "16")]
)
def test_one_device_in_each_of_several_processes_has_one_thread(
    devices: int, processes: int, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads_module, "_cores", lambda: 2)
    assert threads_for(devices, processes).get("PJRT_NPROC") == expected
    monkeypatch.setenv("PJRT_NPROC", "9")
    assert threads_for(devices, processes) == {}


@pytest.mark.parametrize(("platforms", "expected"), [("cpu", "1"), ("cuda,cpu", None)])
def test_but_not_where_the_devices_may_be_accelerators(
    platforms: str, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = jax.config.values["jax_platforms"]
    monkeypatch.setattr(threads_module, "_simulated", lambda: 1)
    jax.config.update("jax_platforms", platforms)
    try:
        with enough_threads(processes=2):
            assert os.environ.get("PJRT_NPROC") == expected
    finally:
        jax.config.update("jax_platforms", before)
    assert "PJRT_NPROC" not in os.environ


def found_in_a_run(folder: Path, devices: int, **variables: str) -> dict[str, Any]:
    (folder / "count_threads.py").write_text(COUNT)
    flags = f"--xla_force_host_platform_device_count={devices}"
    done = subprocess.run(
        [sys.executable, "count_threads.py"],
        cwd=folder,
        env=environment(XLA_FLAGS=flags, JAX_DISABLE_MOST_OPTIMIZATIONS="1", **variables),
        stdout=subprocess.PIPE,
        text=True,
        timeout=120,
        check=True,
    )
    return dict(json.loads(done.stdout))


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_a_run_with_many_simulated_devices_has_them_and_its_children_hear_nothing_of_it(
    tmp_path: Path,
) -> None:
    devices = 2 * threads_module._cores()
    few = found_in_a_run(tmp_path, devices, NPROC=str(devices))
    many = found_in_a_run(tmp_path, devices)
    assert many["threads"] >= few["threads"] + 7 * devices
    assert many["variable"] is None


# What stands in the environment when each process begins its devices.
BEGIN = """
import os
import jax
from trainer_core import hookimpl, plugin

devices = jax.devices

def begin(*arguments):
    with open(f"begun-{os.getpid()}", "a") as file:
        print(os.environ.get("PJRT_NPROC"), file=file)
    return devices(*arguments)

jax.devices = begin

@plugin
class Begin:
    @hookimpl
    def report(self): ...
"""


@pytest.mark.long
@pytest.mark.parametrize(("devices", "expected"), [(1, "1"), (2, "16")])
def test_processes_begin_their_devices_with_the_threads_they_need(
    devices: int, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    (tmp_path / "begin.py").write_text(BEGIN)
    recipe = [*PERCEPTRON, "run.steps=1", "checkpoint.use=none", "plugins.begin.use=begin:Begin"]
    cores = threads_module._cores()
    for each in together(2, "train", *recipe, folder=tmp_path, devices=devices):
        assert each.code == 0, each.err
    found = [path.read_text().split()[0] for path in tmp_path.glob("begun-*")]
    assert found == [expected if devices == 1 or devices >= cores else "None"] * 2


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_a_run_with_one_device_has_as_many_as_before(tmp_path: Path) -> None:
    before = found_in_a_run(tmp_path, 1, NPROC=str(threads_module._cores()))
    # Those of imported libraries may come and go; XLA's would be at least seven more.
    assert abs(found_in_a_run(tmp_path, 1)["threads"] - before["threads"]) < 7
