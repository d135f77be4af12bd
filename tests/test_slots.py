"""Every slot of a config can be filled by a class in a user's file, beside the recipe."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import jax
import numpy as np
import pytest
import tomli_w
from jax.sharding import PartitionSpec
from programs import host

from trainer_core import UserError
from trainer_core.loop import Result, fit
from trainer_core.registry import SLOTS

pytestmark = [pytest.mark.usefixtures("quick_compiles"), pytest.mark.aside]

HEAD = """
from trainer_core import Axis, Data, Model, ParamInfo, Step, Term, hookimpl, plugin, setting
import attrs, jax, jax.numpy as jnp, numpy as np, optax
"""


@attrs.frozen
class Case:
    """A user's class for a slot, and what shows that it was used."""

    source: str
    check: Callable[[Result], None]
    settings: dict[str, Any] = attrs.field(factory=dict)


def model_was_used(result: Result) -> None:
    assert set(result.state.params) == {"slope"}
    assert result.program.param_count == 8


def optimizer_was_used(result: Result) -> None:
    # Signs, times 0.5 at each of 4 steps, times the learning rate of 0.1: multiples of 0.05.
    before = result.program.initial_state().params["gain"]
    moved = (host(result.state.params["gain"]) - host(before)) / 0.05
    np.testing.assert_allclose(moved, np.round(moved), atol=1e-5)
    assert np.any(moved)


def schedule_was_used(result: Result) -> None:
    assert [line["learning_rate"] for line in lines(result)] == [0.5, 0.25, 0.125, 0.0625]


def data_was_used(result: Result) -> None:
    assert result.program.data.asked == [0, 0, 1, 2, 3]
    assert "eval_loss" not in result.metrics  # it holds nothing out


def shard_was_used(result: Result) -> None:
    assert result.program.run.mesh.axis_names == ("everything",)
    assert result.program.shardings.batch.spec == PartitionSpec()


def accumulate_was_used(result: Result) -> None:
    before = result.program.initial_state().params
    assert jax.tree.map(np.array_equal, host(before), host(result.state.params)) == {
        "gain": True,
        "hidden": {"bias": False, "kernel": True},
        "out": {"kernel": True},
    }


def step_was_used(result: Result) -> None:
    assert [line["noticed"] for line in lines(result)] == [7, 7, 7, 7]
    assert set(lines(result)[0]) == {"step", "loss", "noticed", "seconds"}
    assert int(result.state.extra["mine"]) == 4


def checkpoint_was_used(result: Result) -> None:
    assert (result.directory / "state-4.npz").exists()
    assert not (result.directory / "checkpoints").exists()


CASES = {
    "model": Case(
        """
@plugin
class Mine:
    start: float = setting(0.5)

    @hookimpl
    def build_state(self):
        info = ParamInfo("slope", (8,), jnp.dtype("float32"), (Axis(None, "in"),), "matrix")

        def terms(params, buffers, batch, key, train):
            errors = batch["x"] @ params["slope"] - batch["targets"][:, 0]
            return {"squares": Term(jnp.sum(errors**2), errors.size)}, buffers

        return Model(
            init=lambda key: ({"slope": jnp.full(8, self.start)}, {}),
            terms=terms,
            params={"slope": info},
        )
""",
        model_was_used,
        {"start": 0.25},
    ),
    "optimizer": Case(
        """
@plugin
class Mine:
    by: float = setting(1.0)

    @hookimpl
    def build_optimizer(self, learning_rate):
        return optax.chain(
            optax.scale_by_sign(), optax.scale(self.by), optax.scale_by_learning_rate(learning_rate)
        )
""",
        optimizer_was_used,
        {"by": 0.5},
    ),
    "schedule": Case(
        """
@plugin
class Mine:
    first: float = setting(1.0)

    @hookimpl
    def build_schedule(self):
        return lambda step: self.first * 0.5**step
""",
        schedule_was_used,
        {"first": 0.5},
    ),
    "data": Case(
        """
class Ones(Data):
    def __init__(self, rows):
        self.rows, self.asked = rows, []

    def batch(self, step):
        self.asked.append(step)
        shapes = {"x": 8, "targets": 8}
        batch = {name: np.full((self.rows, n), 1 + step, np.float32) for name, n in shapes.items()}
        ones = ("weights", "others", "spoil")
        return batch | {name: np.ones(self.rows, np.float32) for name in ones}


@plugin
class Mine:
    batch_size: int = setting(1)

    @hookimpl
    def build_data(self):
        return Ones(self.batch_size)
""",
        data_was_used,
        {"batch_size": 4},
    ),
    "shard": Case(
        """
from jax.sharding import NamedSharding, PartitionSpec
from trainer_core import Shardings


@plugin
class Mine:
    mesh: dict[str, int] = setting(attrs.Factory(lambda: {"everything": -1}))

    @hookimpl
    def shard(self, run, abstract_state):
        whole = NamedSharding(run.mesh, PartitionSpec())
        return Shardings(jax.tree.map(lambda leaf: whole, abstract_state), whole, whole)
""",
        shard_was_used,
    ),
    "accumulate": Case(
        """
@plugin
class Mine:
    only: str = setting()

    @hookimpl
    def accumulate(self, model, loss):
        gradient = jax.value_and_grad(loss, has_aux=True)

        def grad_fn(params, buffers, batch, key):
            from trainer_core import Gradient

            (value, (terms, buffers)), grads = gradient(params, buffers, batch, key)
            grads = jax.tree.map(
                lambda info, grad: grad * (info.kind == self.only), model.params, grads
            )
            return Gradient(grads, value, terms, buffers)

        return grad_fn
""",
        accumulate_was_used,
        {"only": "bias"},
    ),
    "step": Case(
        """
@plugin
class Mine:
    notice: int = setting(1)

    @hookimpl
    def step(self, grad_fn, optimizer):
        def apply(state, batch):
            found = grad_fn(state.params, state.buffers, batch, state.key)
            updates, opt_state = optimizer.update(found.grads, state.opt_state, state.params)
            after = attrs.evolve(
                state,
                step=state.step + 1,
                params=optax.apply_updates(state.params, updates),
                opt_state=opt_state,
                extra={"mine": state.extra["mine"] + 1},
            )
            return after, {"loss": found.loss, "noticed": jnp.int32(self.notice)}

        return Step(apply, lambda params: {"mine": jnp.int32(0)})
""",
        step_was_used,
        {"notice": 7},
    ),
    "checkpoint": Case(
        """
@plugin
class Mine:
    every: int = setting(1)

    @hookimpl
    def restore(self, run, like):
        files = sorted(run.directory.glob("state-*.npz"))
        if not files:
            return None
        leaves, structure = jax.tree.flatten(like)
        read = np.load(files[-1])
        return jax.tree.unflatten(structure, [
            jax.device_put(
                jax.random.wrap_key_data(read[str(index)])
                if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else read[str(index)],
                leaf.sharding,
            )
            for index, leaf in enumerate(leaves)
        ])

    @hookimpl
    def save(self, run, step, state):
        leaves = [
            jax.random.key_data(leaf)
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
            for leaf in jax.tree.leaves(state)
        ]
        np.savez(run.directory / f"state-{step}.npz", **{
            str(index): np.asarray(leaf) for index, leaf in enumerate(leaves)
        })
""",
        checkpoint_was_used,
        {"every": 2},
    ),
}


def lines(result: Result) -> list[dict[str, Any]]:
    text = (result.directory / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def written(recipe: Any, user_file: Any) -> Callable[..., Path]:
    """Return a function that writes a user's file and a recipe that names it."""

    def write(source: str, **tables: Any) -> Path:
        user_file("mine.py", HEAD + source)
        path: Path = user_file("recipe.toml", tomli_w.dumps(recipe(**tables)))
        return path

    return write


@pytest.mark.parametrize("slot", SLOTS)
def test_every_slot_is_filled_from_a_recipe_by_a_class_in_a_users_file(
    written: Any, slot: str
) -> None:
    case = CASES[slot]
    tables = {"optimizer": {"use": "sgd"}, slot: {"use": "mine:Mine", **case.settings}}
    path = written(case.source, **tables)
    if slot == "schedule":  # its own settings, none of those of the core's schedules
        path.write_text(
            path.read_text().replace("learning_rate = 0.1\n", "").replace("warmup = 0\n", "")
        )
    result = fit(path)
    assert result.step == 4
    case.check(result)


def test_a_users_checkpoints_are_resumed_from(written: Any) -> None:
    table = {"use": "mine:Mine", "every": 2}
    first = fit(written(CASES["checkpoint"].source, checkpoint=table, run={"steps": 2}))
    again = fit(written(CASES["checkpoint"].source, checkpoint=table, run={"steps": 4}))
    assert (first.step, again.resumed_from, again.step) == (2, 2, 4)
    elsewhere = {"directory": str(first.directory.with_name("whole"))}
    whole = fit(written(CASES["checkpoint"].source, run=elsewhere))
    assert again.metrics["loss"] == whole.metrics["loss"]


def test_a_plugin_of_any_name_comes_from_a_users_file(written: Any) -> None:
    source = """
@plugin
class Diary:
    file: str = setting()

    @hookimpl
    def report(self, run, step, metrics):
        with open(run.directory / self.file, "a") as file:
            print(step, metrics["loss"] > 0, file=file)
"""
    table = {"use": "mine:Diary", "file": "diary.txt"}
    result = fit(written(source, plugins={"progress": False, "diary": table}))
    text = (result.directory / "diary.txt").read_text()
    assert text == "1 True\n2 True\n3 True\n4 True\n"


# ------------------------------------------------------------------ mistakes of an author


def refused(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        fit(path)
    assert not (path.parent / "run").exists(), "nothing is written"
    return str(caught.value)


def test_a_second_answer_to_a_hook_with_one_is_refused(written: Any) -> None:
    plugins = {"progress": False, "second": {"use": "mine:Mine"}}
    message = refused(written(CASES["optimizer"].source, plugins=plugins))
    assert "the hook build_optimizer has one answer in a run" in message
    assert "[optimizer] adamw" in message
    assert "[plugins.second] mine:Mine" in message
    assert "@hookimpl(wrapper=True)" in message


@pytest.mark.parametrize("slot", ["model", "data", "optimizer", "step"])
def test_a_hook_that_forgets_its_return_is_named(written: Any, slot: str) -> None:
    (hook,) = SLOTS[slot].hooks
    source = f"""
@plugin
class Mine:
    batch_size: int = setting(16)

    @hookimpl
    def {hook}(self):
        pass
"""
    message = refused(written(source, **{slot: {"use": "mine:Mine"}}))
    assert message == f"the hook {hook} of [{slot}] mine:Mine returned None"


def test_an_argument_that_a_hook_has_not_is_refused_by_name(written: Any) -> None:
    source = """
@plugin
class Mine:
    @hookimpl
    def report(self, stepp):
        pass
"""
    message = refused(written(source, plugins={"mine": {"use": "mine:Mine"}}))
    assert message.startswith('[plugins.mine] use = "mine:Mine" (')
    assert "the hook report of mine:Mine takes 'stepp' (did you mean 'step'?)" in message


def test_a_hook_that_is_not_there_is_refused_by_name(written: Any) -> None:
    source = """
@plugin
class Mine:
    @hookimpl
    def reprot(self, step):
        pass
"""
    message = refused(written(source, plugins={"mine": {"use": "mine:Mine"}}))
    assert "reprot" in message


MODEL = CASES["model"].source


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "Term(jnp.sum(errors**2), errors.size)",
            "jnp.mean(errors**2)",
            ["term 'squares' is a bare array of shape ()", "return trainer_core.Term(sum, weight)"],
        ),
        (
            "Term(jnp.sum(errors**2), errors.size)",
            "Term(errors**2, 1.0)",
            ["term 'squares' has a sum and a weight of shapes (16,) and ()", "two scalars"],
        ),
        (
            '{"squares": Term(jnp.sum(errors**2), errors.size)}',
            "jnp.mean(errors**2)",
            ["the model's terms returned a bare array", "Term(sum, weight)"],
        ),
        (
            "(8,), jnp",
            "(9,), jnp",
            ["slope is float32[8], its ParamInfo says float32[9]"],
        ),
        (
            'params={"slope": info}',
            "params={}",
            ["the model describes its parameters wrongly: slope has no ParamInfo"],
        ),
        (
            'params={"slope": info}',
            'params={"slope": info, "bias": info}',
            ["bias has a ParamInfo and no array"],
        ),
        (
            'params={"slope": info}',
            'params={"slope": info}, coefficients={"square": 2.0}',
            ["coefficients for square, but its terms are squares"],
        ),
    ],
)
def test_a_model_that_does_not_fit_says_what_is_wrong(
    written: Any, old: str, new: str, said: list[str]
) -> None:
    assert MODEL.count(old) == 1
    message = refused(written(MODEL.replace(old, new), model={"use": "mine:Mine"}))
    assert not [part for part in said if part not in message], message


def test_a_data_plugin_without_batch_size_is_told_that_it_needs_one(written: Any) -> None:
    source = CASES["data"].source.replace("    batch_size: int = setting(1)\n", "    ")
    source = source.replace("Ones(self.batch_size)", "Ones(4)")
    message = refused(written(source, data={"use": "mine:Mine"}))
    assert "[data]: batch()['x'] has shape (4, 8); expected 1 rows first" in message
    assert "needs one: batch_size: int" in message


@pytest.mark.parametrize(
    ("state", "update", "said"),
    [
        ("jnp.zeros(2)", "(grads, jnp.zeros(3))", "state goes in as [2] and comes out as [3]"),
        (
            "{'a': jnp.zeros(2)}",
            "(grads, {'b': jnp.zeros(2)})",
            "state/a goes in and does not come out\n  state/b did not go in and comes out",
        ),
        (
            "()",
            "(jax.tree.map(lambda leaf: leaf[None], grads), ())",
            "updates/hidden/bias goes in as [16] and comes out as [1, 16]",
        ),
        ("()", "(grads, [])", "{'state': (), 'updates': {"),
    ],
)
def test_an_optimizer_whose_update_changes_a_shape_is_refused_by_path(
    written: Any, state: str, update: str, said: str
) -> None:
    source = f"""
@plugin
class Mine:
    @hookimpl
    def build_optimizer(self, learning_rate):
        def init(params):
            return {state}

        def update(grads, state, params=None):
            return {update}

        return optax.GradientTransformation(init, update)
"""
    message = refused(written(source, optimizer={"use": "mine:Mine"}))
    assert message.startswith("[optimizer]: `update` must give an update for each gradient, and")
    assert said in message


STEP = CASES["step"].source


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            'state.extra["mine"] + 1',
            'state.extra["mine"] + 1.5',
            "state/extra/mine goes in as int32[] and comes out as float32[]",
        ),
        (
            "jnp.int32(self.notice)",
            "jnp.ones(3)",
            "the metric 'noticed' has shape (3,), not that of a scalar",
        ),
    ],
)
def test_a_step_that_does_not_fit_the_loop_is_refused_before_it_is_compiled(
    written: Any, old: str, new: str, said: str
) -> None:
    assert STEP.count(old) == 1
    message = refused(written(STEP.replace(old, new), step={"use": "mine:Mine"}))
    assert message == f"the step does not fit the loop:\n  {said}"
