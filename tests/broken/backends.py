"""Checkpoint backends that look right, and what CheckpointSuite says of each."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from trainer_core import RunError, hookimpl, plugin, setting
from trainer_core.templates import checkpoint
from trainer_core.templates.checkpoint import Example
from trainer_core.testing import CheckpointSuite
from trainer_core.testing.states import state_at

SAID = {
    "TestWithoutDigest": (
        "test_a_damaged_file_never_gives_a_wrong_state[flipped]",
        "a wrong state comes back",
    ),
    "TestInPlace": ("test_killed_at_any_moment_what_is_there_is_whole", "after a SIGKILL"),
    "TestForgiving": ("test_a_state_of_another_kind_is_an_error[missing]", "restored all the same"),
    "TestNarrow": ("test_every_dtype_and_key_comes_back_to_the_bit", "params/layer/kernel"),
    "TestKeeping": ("test_a_state_is_only_lent", "before `save` returns"),
    "TestNever": ("test_killed_at_any_moment_what_is_there_is_whole", "the newest that is whole"),
    "TestOldest": ("test_the_newest_comes_back", "do not come back as they were saved"),
    "TestLosing": ("test_a_stream_gets_its_position_back", "hand it back by `data.load`"),
    "TestInventing": ("test_nothing_saved_is_nothing_restored", "must return None"),
    "TestOnce": (
        "test_a_second_run_goes_on_after_the_first",
        "do not come back as they were saved",
    ),
    "TestFirstShard": (
        "test_saved_on_eight_devices_it_comes_back_on_one",
        "is of another model or optimizer",
    ),
    "TestOneDevice": (
        "test_saved_on_one_device_it_comes_back_on_eight",
        "restoring on eight devices failed",
    ),
    "TestBeginningAnew": (
        "test_a_damaged_file_never_gives_a_wrong_state[missing]",
        "training would begin anew",
    ),
}


class Changed:
    """The backend of the template, but for one thing."""

    def save(self, run: Any, step: int, state: Any, data: Any) -> None:
        Example().save(run, step, state, data)

    def restore(self, run: Any, like: Any, data: Any) -> Any:
        return Example().restore(run, like, data)

    def close(self) -> None:
        pass


class WithoutDigest(Changed):
    """Arrays as they are, as `tofile` writes them."""

    def save(self, run: Any, step: int, state: Any, data: Any) -> None:
        folder = checkpoint._folder(run)
        folder.mkdir(parents=True, exist_ok=True)
        leaves = [np.asarray(checkpoint._words(leaf)) for leaf in jax.tree.leaves(state)]
        unfinished = folder / "unfinished"
        unfinished.write_bytes(b"".join(leaf.tobytes() for leaf in leaves))
        unfinished.replace(folder / f"{step}.checkpoint")

    def restore(self, run: Any, like: Any, data: Any) -> Any:
        found = checkpoint._newest_first(run)
        if not found:
            return None
        content, leaves = found[0].read_bytes(), []
        for leaf in jax.tree.leaves(like):
            words = jax.eval_shape(checkpoint._words, leaf)
            size = words.size * words.dtype.itemsize
            leaves.append(checkpoint._placed(content[:size], leaf))
            content = content[size:]
        return jax.tree.unflatten(jax.tree.structure(like), leaves)


class InPlace(Changed):
    """Writes where the checkpoint will be, and reads whatever is there."""

    def save(self, run: Any, step: int, state: Any, data: Any) -> None:
        folder = checkpoint._folder(run)
        folder.mkdir(parents=True, exist_ok=True)
        content = checkpoint._packed(state, data.state())
        with (folder / "1.checkpoint").open("wb") as file:
            for at in range(0, len(content), 4096):
                file.write(content[at : at + 4096])
                file.flush()
                time.sleep(0.01)

    def restore(self, run: Any, like: Any, data: Any) -> Any:
        path = checkpoint._folder(run) / "1.checkpoint"
        return checkpoint._unpacked(path.read_bytes(), like, path)[0] if path.exists() else None


class Forgiving(Changed):
    def restore(self, run: Any, like: Any, data: Any) -> Any:
        """What is wanted and is there, whatever else was saved."""
        path = checkpoint._newest_first(run)[0]
        with np.load(io.BytesIO(path.read_bytes()[32:])) as archive:
            kinds = json.loads(str(archive["about"]))["kinds"]
            stored = {each: archive[str(at)].tobytes() for at, each in enumerate(kinds)}
        leaves = [
            checkpoint._placed(stored[each], leaf)
            for each, leaf in checkpoint._by_path(like).items()
        ]
        return jax.tree.unflatten(jax.tree.structure(like), leaves)


class Narrow(Changed):
    def restore(self, run: Any, like: Any, data: Any) -> Any:
        state = Example().restore(run, like, data)

        def narrowed(leaf: Any) -> Any:
            return leaf.astype("bfloat16").astype(leaf.dtype) if leaf.dtype == "float32" else leaf

        return jax.tree.map(narrowed, state)


class Keeping(Changed):
    """Writes at the end what it was lent."""

    lent: Any = None

    def save(self, run: Any, step: int, state: Any, data: Any) -> None:
        self.lent = (run, step, state, data)

    def close(self) -> None:
        if self.lent is not None:
            Example().save(*self.lent)


class Never(Changed):
    """Gives nothing back from a run that was killed."""

    def close(self) -> None:
        if self.folder is not None:
            (self.folder / "closed").touch()

    folder: Any = None

    def save(self, run: Any, step: int, state: Any, data: Any) -> None:
        self.folder = checkpoint._folder(run)
        super().save(run, step, state, data)
        (self.folder / "closed").unlink(missing_ok=True)

    def restore(self, run: Any, like: Any, data: Any) -> Any:
        folder = checkpoint._folder(run)
        if folder.exists() and not (folder / "closed").exists():
            raise RunError("it was killed, and all is lost")
        return super().restore(run, like, data)


class Oldest(Changed):
    def restore(self, run: Any, like: Any, data: Any) -> Any:
        for newer in checkpoint._newest_first(run)[:-1]:
            newer.unlink()
        return Example().restore(run, like, data)


class Losing(Changed):
    def restore(self, run: Any, like: Any, data: Any) -> Any:
        from trainer_core import Data

        return Example().restore(run, like, Data())


class BeginningAnew(Changed):
    """Looks the newest up in a file of its own."""

    def save(self, run: Any, step: int, state: Any, data: Any) -> None:
        super().save(run, step, state, data)
        (Path(run.directory) / "newest-is-there").touch()
        (Path(run.directory) / f"newest-is-{step}").touch()

    def restore(self, run: Any, like: Any, data: Any) -> Any:
        whole = checkpoint._newest_first(run)
        names = [path.name for path in Path(run.directory).glob("newest-is-*")]
        if not whole or f"newest-is-{whole[0].stem}" not in names:
            return None
        return super().restore(run, like, data)


class Inventing(Changed):
    def restore(self, run: Any, like: Any, data: Any) -> Any:
        if checkpoint._folder(run).exists():
            return super().restore(run, like, data)
        return state_at(0)


class Once(Changed):
    """Leaves alone what another run has saved."""

    is_first: Any = None

    def save(self, run: Any, step: int, state: Any, data: Any) -> None:
        if self.is_first is None:
            self.is_first = not checkpoint._folder(run).exists()
        if self.is_first:
            super().save(run, step, state, data)


class FirstShard(Changed):
    def save(self, run: Any, step: int, state: Any, data: Any) -> None:
        super().save(run, step, jax.tree.map(lambda leaf: leaf.addressable_data(0), state), data)


class OneDevice(Changed):
    def restore(self, run: Any, like: Any, data: Any) -> Any:
        if any(len(leaf.sharding.device_set) > 1 for leaf in jax.tree.leaves(like)):
            raise RunError("this is for one device")
        return super().restore(run, like, data)


KINDS = {cls.__name__: cls for cls in Changed.__subclasses__()}


@plugin
class Backend:
    wrong: str = setting("InPlace", "what is wrong with it")

    def __attrs_post_init__(self) -> None:
        self.backend = KINDS[self.wrong]()

    @hookimpl
    def save(self, run: Any, step: int, state: Any, data: Any) -> None:
        self.backend.save(run, step, state, data)

    @hookimpl
    def restore(self, run: Any, like: Any, data: Any) -> Any:
        return self.backend.restore(run, like, data)

    @hookimpl
    def close(self) -> None:
        self.backend.close()


class Suite(CheckpointSuite):
    use = "backends:Backend"


class TestWithoutDigest(Suite):
    settings = {"wrong": "WithoutDigest"}


class TestInPlace(Suite):
    settings = {"wrong": "InPlace"}


class TestForgiving(Suite):
    settings = {"wrong": "Forgiving"}


class TestNarrow(Suite):
    settings = {"wrong": "Narrow"}


class TestKeeping(Suite):
    settings = {"wrong": "Keeping"}


class TestNever(Suite):
    settings = {"wrong": "Never"}


class TestOldest(Suite):
    settings = {"wrong": "Oldest"}


class TestLosing(Suite):
    settings = {"wrong": "Losing"}


class TestInventing(Suite):
    settings = {"wrong": "Inventing"}


class TestOnce(Suite):
    settings = {"wrong": "Once"}


class TestFirstShard(Suite):
    settings = {"wrong": "FirstShard"}


class TestOneDevice(Suite):
    settings = {"wrong": "OneDevice"}


class TestBeginningAnew(Suite):
    settings = {"wrong": "BeginningAnew"}
