"""What is wrong with a plugin fails its suite, by the test that is for it, and is told."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from trainer_core.testing import (
    CheckpointSuite,
    DataSuite,
    ModelSuite,
    OptimizerSuite,
    PluginSuite,
)

BROKEN = Path(__file__).parent / "broken"


KINDS = ["optimizers", "nets", "sources", "backends", "observers"]
SUITES = (OptimizerSuite, ModelSuite, DataSuite, CheckpointSuite, PluginSuite)


def test_each_test_of_a_suite_has_a_mistake_that_fails_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BROKEN))
    failed = set()
    for kind in KINDS:
        made = runpy.run_path(str(BROKEN / f"{kind}.py"))
        # By the class that has it: what two suites ask under one name may be two things.
        named = [(cls, test.partition("[")[0]) for cls, (test, _) in made["SAID"].items()]
        failed |= {getattr(made[cls], test, None) for cls, test in named}
    asked = {
        f"{suite.__name__}.{name}"
        for suite in SUITES
        for name in dir(suite)
        if name.startswith("test_") and getattr(suite, name) not in failed
    }
    assert not asked


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_each_mistake_fails_the_test_that_is_for_it(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BROKEN))
    said = runpy.run_path(str(BROKEN / f"{kind}.py"))["SAID"]
    names = [f"{BROKEN / kind}.py::{cls}::{test}" for cls, (test, _) in said.items()]
    report = tmp_path / "report.xml"
    options = ["-q", "-p", "no:cacheprovider", "-c", os.devnull, f"--rootdir={tmp_path}"]
    subprocess.run(
        [sys.executable, "-m", "pytest", *options, f"--junitxml={report}", *names],
        env={**os.environ, "PYTHONPATH": str(BROKEN)},
        stdout=subprocess.DEVNULL,
    )
    told = {
        (case.attrib["classname"].rpartition(".")[2], case.attrib["name"]): "".join(
            each.attrib.get("message", "") for each in case
        )
        for case in ElementTree.parse(report).iter("testcase")
    }
    unsaid = {
        cls: told.get((cls, test), "there is no such test")
        for cls, (test, words) in said.items()
        if words not in told.get((cls, test), "")
    }
    assert not unsaid
