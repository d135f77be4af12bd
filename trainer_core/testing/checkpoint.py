"""What every checkpoint backend must hold to: all of the state comes back, or an error does."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import jax
import pytest

from trainer_core.errors import TrainerError
from trainer_core.testing.parts import different_leaves
from trainer_core.testing.sharded import eight_devices
from trainer_core.testing.states import like, placed, read, saving, state_at
from trainer_core.testing.suite import Opened, Suite
from trainer_core.types import Data, TrainState


class CheckpointSuite(Suite):
    """The tests of a checkpoint backend: subclass it, and name the backend.

    class TestArchive(CheckpointSuite):
        use = "archive"
    """

    slot = "checkpoint"

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """Where a run is written."""
        return tmp_path / "run"

    def test_nothing_saved_is_nothing_restored(self, folder: Path) -> None:
        if self._restored(folder) is not None:
            self.fail("where nothing was ever saved, `restore` must return None")

    def test_every_dtype_and_key_comes_back_to_the_bit(self, folder: Path) -> None:
        self._save(folder, 1)
        self._check(self._restored(folder), 1)

    def test_the_newest_comes_back(self, folder: Path) -> None:
        self._save(folder, 1, 2, 3)
        self._check(self._restored(folder), 3)

    def test_a_state_is_only_lent(self, folder: Path) -> None:
        state = placed(state_at(1), None)
        try:
            with self._saving(folder) as save:
                save(state)
                for leaf in jax.tree.leaves(state):
                    leaf.delete()  # as the next step does, which takes over its memory
        except Exception as error:
            self.fail(
                f"saving raised {type(error).__name__}: {error}; copy what is to be written before "
                f"`save` returns: the next step takes over the memory of the state"
            )
        self._check(self._restored(folder), 1)

    def test_a_stream_gets_its_position_back(self, folder: Path) -> None:
        self._save(folder, 1, data=_Stream({"at": 7, "shard": "b"}))
        stream = _Stream({"at": 0})
        self._restored(folder, data=stream)
        if stream.position != {"at": 7, "shard": "b"}:
            self.fail(
                f"the stream stood at {{'at': 7, 'shard': 'b'}} when it was saved, and is handed "
                f"{stream.position}: save `data.state()`, and hand it back by `data.load`"
            )

    def test_a_second_run_goes_on_after_the_first(self, folder: Path) -> None:
        self._save(folder, 1)
        with self._saving(folder) as save:
            save(placed(state_at(2), None))
        self._check(self._restored(folder), 2)

    @pytest.mark.parametrize("change", ["shape", "dtype", "missing", "added"])
    def test_a_state_of_another_kind_is_an_error(self, folder: Path, change: str) -> None:
        self._save(folder, 1)
        wanted, path = _CHANGES[change](like(state_at(1), None))
        try:
            self._restored(folder, wanted)
        except TrainerError as error:
            if path not in str(error):
                self.fail(f"the error about {change} of {path} does not name it: {error}")
        except Exception as error:
            self.fail(
                f"of a state that does not fit it raises {type(error).__name__}: {error}; raise "
                f"trainer_core.UserError, with the paths"
            )
        else:
            self.fail(f"a checkpoint that does not fit ({path}: {change}) is restored all the same")

    @pytest.mark.parametrize("damage", ["truncated", "flipped", "missing"])
    def test_a_damaged_file_never_gives_a_wrong_state(self, folder: Path, damage: str) -> None:
        self._save(folder, 1)
        older = _files(folder)
        self._save(folder, 2)
        newer = [path for path, content in _files(folder).items() if older.get(path) != content]
        if not newer:
            self.fail(f"saving wrote no file below {folder}, so that nothing can be damaged")
        # Where the first step lies there untouched, it can be gone back to.
        is_kept = older.keys() <= _files(folder).keys() - set(newer)
        for path in newer:
            copy = folder.with_name("damaged")
            shutil.copytree(folder, copy)
            _DAMAGES[damage](copy / path)
            self._check_whole(copy, f"with {path} {damage}", may_refuse=not is_kept)
            shutil.rmtree(copy)

    def test_killed_at_any_moment_what_is_there_is_whole(self, folder: Path) -> None:
        self._save(folder, 1)
        for number in range(3):
            with self._in_another_process("saved_without_end", folder) as process:
                assert process.stdout is not None
                for _ in range(number + 2):
                    line = process.stdout.readline()
                    if not line:
                        self.fail(f"saving failed:\n{self._errors(folder)}")
                time.sleep(0.03 * number)
                process.send_signal(signal.SIGKILL)
            self._check_whole(folder, "after a SIGKILL while it saved")

    def test_saved_on_eight_devices_it_comes_back_on_one(self, folder: Path) -> None:
        with self._in_another_process("saved_on_eight", folder) as process:
            process.communicate(timeout=_PATIENCE)
        if process.returncode:
            self.fail(f"saving on eight devices failed:\n{self._errors(folder)}")
        self._check(self._restored(folder), 1)

    def test_saved_on_one_device_it_comes_back_on_eight(self, folder: Path) -> None:
        self._save(folder, 1)
        with self._in_another_process("restored_on_eight", folder) as process:
            output, _ = process.communicate(timeout=_PATIENCE)
        if process.returncode:
            self.fail(f"restoring on eight devices failed:\n{self._errors(folder)}")
        if different := json.loads(output.splitlines()[-1]):
            self.fail(f"on eight devices these come back otherwise: {', '.join(different)}")

    # ------------------------------------------------------------------

    def _open(self, folder: Path) -> Opened:
        return self.opened(run={"directory": str(folder)})

    def _saving(self, folder: Path, data: Data | None = None) -> Any:
        return saving(*self._open(folder), data)

    def _save(self, folder: Path, *steps: int, data: Data | None = None) -> None:
        with self._saving(folder, data) as save:
            for step in steps:
                save(placed(state_at(step), None))

    def _restored(
        self, folder: Path, wanted: TrainState | None = None, data: Data | None = None
    ) -> TrainState | None:
        wanted = like(state_at(1), None) if wanted is None else wanted
        return read(*self._open(folder), wanted, data)

    def _check(self, found: TrainState | None, step: int) -> None:
        if found is None:
            self.fail(f"step {step} was saved, and `restore` returned None")
        if different := different_leaves(found, state_at(step)):
            self.fail(f"these do not come back as they were saved: {', '.join(different)}")

    def _check_whole(self, folder: Path, when: str, may_refuse: bool = False) -> None:
        """Fail unless a state comes back that was saved, or, where it may, one clear error."""
        try:
            found = self._restored(folder)
        except TrainerError as error:
            if not may_refuse:
                self.fail(
                    f"{when}, an older checkpoint is whole, and `restore` raises: {error}; go back "
                    f"to the newest that is whole"
                )
            return
        except Exception as error:
            self.fail(
                f"{when}, `restore` raises {type(error).__name__}: {error}; go back to the newest "
                f"checkpoint that is whole, or raise trainer_core.RunError"
            )
        if found is None:
            self.fail(f"{when}, `restore` returns None, and training would begin anew")
        if different := different_leaves(found, state_at(int(found.step))):
            self.fail(f"{when}, a wrong state comes back: {', '.join(different)} differ")

    def _errors(self, folder: Path) -> str:
        return (folder.parent / "errors").read_text()

    @contextmanager
    def _in_another_process(self, work: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
        recipe = folder.parent / "recipe.json"
        recipe.write_text(json.dumps(self.recipe(run={"directory": str(folder)})))
        with recipe.open() as given, (folder.parent / "errors").open("w") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "trainer_core.testing", f"{_WORK}:{work}"],
                env=eight_devices(),
                stdin=given,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()


_WORK = "trainer_core.testing.states"
_PATIENCE = 300  # seconds; a process that starts, saves and ends takes ten


class _Stream(Data):
    def __init__(self, position: dict[str, Any]) -> None:
        self.position = position

    def state(self) -> dict[str, Any]:
        return self.position

    def load(self, state: dict[str, Any]) -> None:
        self.position = state


def _otherwise(wanted: TrainState, change: Callable[[Any], Any]) -> TrainState:
    params: Any = wanted.params
    layer = dict(params["layer"], kernel=change(params["layer"]["kernel"]))
    return attrs.evolve(wanted, params=params | {"layer": layer})


def _shape(wanted: TrainState) -> tuple[TrainState, str]:
    def other(leaf: Any) -> Any:
        return jax.ShapeDtypeStruct((leaf.shape[0], 24), leaf.dtype, sharding=leaf.sharding)

    return _otherwise(wanted, other), "layer/kernel"


def _dtype(wanted: TrainState) -> tuple[TrainState, str]:
    def other(leaf: Any) -> Any:
        return jax.ShapeDtypeStruct(leaf.shape, "int32", sharding=leaf.sharding)

    return _otherwise(wanted, other), "layer/kernel"


def _missing(wanted: TrainState) -> tuple[TrainState, str]:
    rest = {name: each for name, each in wanted.params.items() if name != "layer"}
    return attrs.evolve(wanted, params=rest), "layer/kernel"


def _added(wanted: TrainState) -> tuple[TrainState, str]:
    params = wanted.params | {"second": wanted.params["layer"]}
    return attrs.evolve(wanted, params=params), "second/kernel"


_CHANGES: dict[str, Callable[[TrainState], tuple[TrainState, str]]] = {
    "shape": _shape,
    "dtype": _dtype,
    "missing": _missing,
    "added": _added,
}


def _truncate(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    if content:
        content[len(content) // 2] ^= 1
    path.write_bytes(content)


_DAMAGES: dict[str, Callable[[Path], None]] = {
    "truncated": _truncate,
    "flipped": _flip,
    "missing": Path.unlink,
}


def _files(folder: Path) -> dict[Path, bytes]:
    return {
        path.relative_to(folder): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
