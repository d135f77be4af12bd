"""Whether the parts of a run fit each other; what does not is told by path."""

from __future__ import annotations

import functools
from collections.abc import Collection
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from trainer_core.axes import mesh_axes_of
from trainer_core.errors import TrainerError, UserError, first_line, kind_of, listed
from trainer_core.registry import SLOTS
from trainer_core.run import Run
from trainer_core.settings import shown
from trainer_core.types import Data, Metrics, Model, ParamInfo, Shardings, TrainState


def filled_batch_size(run: Run) -> int:
    """Return the rows of a placed batch: the next multiple of the devices that share it."""
    parts = run.axes.batch_parts()
    return -(-run.batch_size // parts) * parts


def check_batch_size(run: Run, rows: Collection[str] = ("weights",)) -> None:
    """A batch is divided among the devices; one that is only evaluated can be filled up.

    Args:
        run: the run.
        rows: the names of the arrays of its batches.
    """
    filled = filled_batch_size(run)
    if filled == run.batch_size or (run.is_read and "weights" in rows):
        return
    missing = (
        ""
        if "weights" in rows
        else (
            f" (its batches have no `weights`, by which rows that fill one up would count nothing: "
            f"they have {', '.join(rows)})"
        )
    )
    raise UserError(
        f"[data] batch_size = {run.batch_size} must be divisible by the {run.axes.batch_parts()} "
        f"devices that [shard] mesh spreads a batch over{missing}; the next that fits is {filled}",
        "data.batch_size",
        "shard.mesh",
    )


def check_answer(run: Run, slot: str, answer: Any, wanted: str, methods: tuple[str, ...]) -> None:
    """What a plugin answers is not only there, but what it should be."""
    missing = [each for each in methods if not callable(getattr(answer, each, None))]
    if missing:
        hint = "; was it meant to be called?" if callable(answer) else ""
        use, hook = run.config[slot]["use"], SLOTS[slot].hooks[0]
        raise UserError(
            f'[{slot}] use = "{use}": its {hook} returned {wanted} as {kind_of(answer)}, '
            f"which has no {' and no '.join(missing)}{hint}",
            f"{slot}.use",
        )


def naming_settings(run: Run, optimizer: Any) -> Any:
    """Return an optimizer whose `init` and `update` name its settings in what they raise.

    Both are only ever traced: what they refuse comes from the config, or from their own code.
    """
    if not hasattr(optimizer, "_replace"):  # no tuple as optax has it, but like one
        return optimizer
    table = run.config["optimizer"]
    keys = [key for key in ("use", "transform", "arguments") if key in table]
    said = ", ".join(f"{key} = {shown(table[key])}" for key in keys)

    def naming(name: str) -> Any:
        function = getattr(optimizer, name)

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                return function(*args, **kwargs)
            except TrainerError:
                raise
            except Exception as error:
                raise UserError(
                    f"[optimizer] {said}: its `{name}` raised {first_line(error)}; --traceback "
                    f"shows where",
                    *(f"optimizer.{key}" for key in keys),
                ) from error

        return call

    return optimizer._replace(init=naming("init"), update=naming("update"))


def batch_shapes(run: Run, rows: dict[str, np.ndarray]) -> dict[str, jax.ShapeDtypeStruct]:
    check_batch_size(run, rows)
    size, shapes = filled_batch_size(run), {}
    for name, array in rows.items():
        if array.shape[:1] != (len(run.rows),):
            hint = (
                ""
                if "batch_size" in run.config["data"]
                else ("; the data plugin has no such setting, and needs one: batch_size: int")
            )
            raise UserError(
                f"[data]: batch()[{name!r}] has shape {array.shape}; expected "
                f"{len(run.rows)} rows first: run.rows, this process's part of [data] batch_size "
                f"= {run.batch_size}{hint}",
                "data.use",
            )
        shapes[name] = jax.ShapeDtypeStruct((size, *array.shape[1:]), array.dtype)
    return shapes


def check_step(given: TrainState, returned: TrainState, metrics: Metrics) -> None:
    """The next step takes what this one gives back, and a metric is one number."""
    problems = [f"state/{change}" for change in changes(given, returned)]
    problems += [
        f"the metric {name!r} has shape {tuple(each.shape)}, not that of a scalar"
        for name, each in metrics.items()
        if each.shape
    ]
    if problems:
        raise UserError(f"the step does not fit the loop:{listed(problems)}")


def changes(given: Any, returned: Any, *, dtypes: bool = True) -> list[str]:
    """Return what the leaves of a tree have become, by path: nothing where it is what it was."""

    def forms(tree: Any) -> dict[str, str]:
        return {
            _place(path): f"{leaf.dtype if dtypes else ''}{list(leaf.shape)}"
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }

    before, after = forms(given), forms(returned)
    lines = [
        f"{path} goes in as {before[path]} and comes out as {after[path]}"
        for path in before
        if path in after and before[path] != after[path]
    ]
    lines += [f"{path} goes in and does not come out" for path in before if path not in after]
    lines += [f"{path} did not go in and comes out" for path in after if path not in before]
    structures = [str(jax.tree.structure(tree)) for tree in (given, returned)]
    if not lines and structures[0] != structures[1]:
        lines = [f"{structures[0]} goes in and {structures[1]} comes out"]
    return lines


def check_tokens(model: Model, data: Data, rows: dict[str, np.ndarray]) -> None:
    """What the data says of its tokens, and the first batch itself, must fit the model."""
    keys = ("model.vocab", "model.context", "data.use", "data.length")
    largest = 0 if data.vocabulary is None else data.vocabulary - 1
    for name in ("tokens", "targets"):
        array = rows.get(name, np.zeros(0))
        if not array.size or not np.issubdtype(array.dtype, np.integer):
            continue
        if array.min() < 0:
            raise UserError(
                f"[data]: batch()[{name!r}] has a token {array.min()}; none is < 0", *keys
            )
        largest = max(largest, int(array.max()))
    if model.vocabulary and largest >= model.vocabulary:
        raise UserError(
            f"[data] has tokens up to {largest}, and the model knows only {model.vocabulary}; set "
            f"model.vocab={largest + 1}",
            *keys,
        )
    length = rows["tokens"].shape[1] if rows.get("tokens", np.zeros(0)).ndim == 2 else 0
    if model.context is not None and length > model.context:
        raise UserError(
            f"[data] has sequences of {length} tokens, and the model is meant for "
            f"{model.context}; set data.length={model.context}, or model.context={length}",
            *keys,
        )


def check_infos(infos: Any, arrays: Any, what: str) -> None:
    """Every array has its ParamInfo, of the same shape and dtype, and the reverse."""
    known = dict(_by_path(infos))
    problems = []
    for path, array in _by_path(arrays):
        info = known.pop(path, None)
        if not isinstance(info, ParamInfo):
            problems.append(f"{path} has no ParamInfo")
        elif (info.shape, info.dtype) != (array.shape, array.dtype):
            problems.append(
                f"{path} is {array.dtype}{list(array.shape)}, its ParamInfo says "
                f"{info.dtype}{list(info.shape)}"
            )
    problems += [f"{path} has a ParamInfo and no array" for path in known]
    if problems:
        raise UserError(f"the model describes its {what}s wrongly: {'; '.join(problems)}")


def check_shardings(run: Run, state: TrainState, shardings: Shardings) -> None:
    """Every leaf of the state has its sharding, there is no other, and rows lie where read."""
    wanted = {_place(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)}
    found = {
        _place(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(shardings.state)
    }
    problems = [f"{place} has no sharding" for place in sorted(wanted - found.keys())]
    problems += [f"{place} is no leaf of the state" for place in sorted(found.keys() - wanted)]
    problems += [
        f"{place} has a {type(leaf).__name__}, not a NamedSharding of run.mesh"
        for place, leaf in [*sorted(found.items()), ("batch", shardings.batch)]
        if not (isinstance(leaf, NamedSharding) and leaf.mesh == run.mesh)
    ]
    rows = mesh_axes_of(run.axes.batch_sharding().spec, 1)[0]
    # One process has all rows, wherever they then lie.
    if run.processes > 1 and not problems and mesh_axes_of(shardings.batch.spec, 1)[0] != rows:
        problems = [
            f"batch is spread by {shardings.batch.spec}, and its rows are read over {rows}, as "
            f"run.axes.batch_sharding() says"
        ]
    if problems:
        raise UserError(
            f"[shard]: what the hook `shard` returned does not fit the state:{listed(problems)}",
            "shard.use",
        )


def _place(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _by_path(tree: Any) -> list[tuple[str, Any]]:
    return [
        ("/".join(str(entry.key) for entry in path), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]
