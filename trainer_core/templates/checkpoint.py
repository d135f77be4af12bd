"""One file for each saved step: NumPy arrays behind a digest. For one process."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
from pathlib import Path
from typing import Any

from trainer_core import RunError, UserError, hookimpl, plugin, setting


@plugin
class Example:
    every: int = setting(100, "save this often, and at the end", unit="steps", may_change=True)
    keep: int = setting(2, "how many of the newest stay", unit="checkpoints", may_change=True)

    @hookimpl
    def save(self, run: Any, step: int, state: Any, data: Any) -> None:
        if run.processes > 1:
            raise UserError("this checkpoint backend is for one process", "checkpoint.use")
        content = _packed(state, data.state())
        path = _folder(run) / f"{step}.checkpoint"
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".unfinished")
        with unfinished.open("wb") as file:
            file.write(hashlib.sha256(content).digest() + content)
            os.fsync(file.fileno())
        unfinished.replace(path)  # at once: what has this name is whole
        for old in _newest_first(run)[self.keep :]:
            old.unlink()

    @hookimpl
    def restore(self, run: Any, like: Any, data: Any) -> Any:
        found = _newest_first(run)
        for path in found:
            digest, content = path.read_bytes()[:32], path.read_bytes()[32:]
            if hashlib.sha256(content).digest() == digest:
                state, position = _unpacked(content, like, path)
                if position is not None:
                    data.load(position)
                return state
            logging.getLogger("trainer_core.checkpoint").warning("%s is damaged", path)
        if found:
            raise RunError(f"no checkpoint in {_folder(run)} is whole; nothing was changed")
        return None


def _folder(run: Any) -> Path:
    return Path(run.directory) / "checkpoints"


def _newest_first(run: Any) -> list[Path]:
    return sorted(_folder(run).glob("*.checkpoint"), key=lambda path: -int(path.stem))


def _packed(state: Any, position: Any) -> bytes:
    import numpy as np

    leaves = _by_path(state)
    kinds = {path: [str(leaf.dtype), list(leaf.shape)] for path, leaf in leaves.items()}
    arrays: dict[str, Any] = {
        str(number): np.frombuffer(np.asarray(_words(leaf)).tobytes(), np.uint8)
        for number, leaf in enumerate(leaves.values())
    }
    file = io.BytesIO()
    np.savez(file, about=np.array(json.dumps({"kinds": kinds, "position": position})), **arrays)
    return file.getvalue()


def _unpacked(content: bytes, like: Any, path: Path) -> tuple[Any, Any]:
    import jax
    import numpy as np

    wanted = _by_path(like)
    with np.load(io.BytesIO(content)) as archive:  # no pickle is ever read
        about = json.loads(str(archive["about"]))
        stored = [archive[str(number)].tobytes() for number in range(len(about["kinds"]))]
    kinds = {each: [str(leaf.dtype), list(leaf.shape)] for each, leaf in wanted.items()}
    different = [
        f"{each}: {about['kinds'].get(each, 'not')} saved, {kinds.get(each, 'not')} wanted"
        for each in sorted({**about["kinds"], **kinds})
        if about["kinds"].get(each) != kinds.get(each)
    ]
    if different:
        raise UserError(f"{path} is of another model or optimizer:\n  " + "\n  ".join(different))
    by_path = dict(zip(about["kinds"], stored, strict=True))
    leaves = [_placed(by_path[each], leaf) for each, leaf in wanted.items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves), about["position"]


def _by_path(tree: Any) -> dict[str, Any]:
    import jax

    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _words(leaf: Any) -> Any:
    """Return an array as numbers: a typed key as its words."""
    import jax

    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _placed(stored: bytes, like: Any) -> Any:
    """Return an array where `like` says that it lies."""
    import jax
    import numpy as np

    words = jax.eval_shape(_words, like)
    array: Any = np.frombuffer(stored, words.dtype).reshape(words.shape)
    return jax.device_put(
        jax.random.wrap_key_data(array) if _is_key(like) else array, like.sharding
    )


def _is_key(leaf: Any) -> bool:
    import jax

    return bool(jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key))
