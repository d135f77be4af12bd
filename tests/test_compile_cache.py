"""An entry of JAX's compile cache that a kill has torn costs one run some time, and no other."""

from __future__ import annotations

from pathlib import Path

import pytest
from command import PERCEPTRON, trainer

RUN = ["train", *PERCEPTRON, "run.steps=2", "run.eval_every=0", "checkpoint.use=none"]


@pytest.mark.parametrize(
    "part",
    [pytest.param(0.0, marks=pytest.mark.long, id="empty"), pytest.param(0.5, id="truncated")],
)
def test_a_torn_entry_is_written_anew_and_the_next_run_is_quiet(
    part: float, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"

    def run(name: str) -> str:
        done = trainer(
            *RUN,
            f"run.directory={name}",
            folder=tmp_path,
            JAX_COMPILATION_CACHE_DIR=str(cache),
            JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
        )
        assert done.returncode == 0, done.stderr
        return done.stderr

    assert run("first") == ""
    entries = {path: path.read_bytes() for path in cache.glob("*-cache")}
    assert any(path.name.startswith("jit_apply-") for path in entries)  # the step
    for path, whole in entries.items():
        path.write_bytes(whole[: int(part * len(whole))])
    said = "warning: this entry of the compile cache was torn, and is deleted: "
    lines = run("second").splitlines()
    assert sorted(lines) == sorted(f"{said}{path}" for path in entries)
    written = {path: path.stat().st_mtime_ns for path in entries}
    assert run("third") == ""
    assert {path: path.stat().st_mtime_ns for path in entries} == written
