"""Wrappers around `accumulate` and `step`: short, in a user's file, with state of their own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from fenced import shown
from programs import Parts, assert_bitwise_equal, build, host, recipe

from trainer_core import cli
from trainer_core.imports import search_in
from trainer_core.loop import fit
from trainer_core.testing import PluginSuite

pytestmark = [pytest.mark.usefixtures("quick_compiles"), pytest.mark.aside]

NOISE = '''\
"""Gradient noise (Neelakantan et al., 2015), of one scale."""

import attrs
import jax

from trainer_core import hookimpl, plugin, setting
from trainer_core.randomness import fold


@plugin
class Noise:
    scale: float = setting(0.01, "standard deviation of what is added to each gradient")

    @hookimpl(wrapper=True)
    def accumulate(self):
        grad_fn = yield

        def noisy(params, buffers, batch, key):
            found = grad_fn(params, buffers, batch, key)
            leaves, structure = jax.tree.flatten(found.grads)
            keys = jax.random.split(fold(key, "noise"), len(leaves))
            leaves = [
                leaf + self.scale * jax.random.normal(each, leaf.shape, leaf.dtype)
                for leaf, each in zip(leaves, keys)
            ]
            return attrs.evolve(found, grads=jax.tree.unflatten(structure, leaves))

        return noisy
'''

METRIC = '''\
"""Adds the norm of the parameters to the metrics of every step."""

import jax
import jax.numpy as jnp

from trainer_core import hookimpl, plugin


@plugin
class Norm:
    @hookimpl(wrapper=True)
    def step(self):
        inner = yield

        def step(state, batch):
            after, metrics = inner(state, batch)
            squares = [jnp.sum(leaf**2) for leaf in jax.tree.leaves(after.params)]
            return after, metrics | {"param_norm": jnp.sqrt(sum(squares))}

        return step
'''

AVERAGE = shown(Path(__file__).parents[1] / "docs/hooks.md", "average.py")

FILES = {"noise.py": NOISE, "norm.py": METRIC, "average.py": AVERAGE}
USES = {"noise": "noise:Noise", "norm": "norm:Norm", "average": "average:Average"}


@pytest.fixture
def plugins(user_file: Any) -> Callable[..., dict[str, Any]]:
    """Return a function that gives the [plugins] table for some of the files above."""
    for name, source in FILES.items():
        folder = user_file(name, source).parent
    search_in(folder)

    def table(*names: str, **settings: Any) -> dict[str, Any]:
        return {name: {"use": USES[name], **settings.get(name, {})} for name in names}

    return table


@pytest.mark.parametrize("name", FILES)
def test_a_wrapper_takes_less_than_40_lines(name: str) -> None:
    assert len(FILES[name].splitlines()) < 40


def gradient(parts: Parts, step: int = 0) -> Any:
    state = parts.state()
    key = jax.random.fold_in(state.key, step)
    return parts.gradient(state.params, state.buffers, parts.batch(0), key).grads


def test_noise_around_accumulate_has_its_scale_and_is_new_at_each_step(plugins: Any) -> None:
    plain = build(recipe())
    noisy = build(recipe(plugins=plugins("noise", noise={"scale": 0.5})))

    def noise(step: int) -> np.ndarray:
        pairs = zip(
            jax.tree.leaves(host(gradient(noisy, step))),
            jax.tree.leaves(host(gradient(plain, step))),
            strict=True,
        )
        return np.concatenate([(a - b).ravel() for a, b in pairs])

    first, second = noise(0), noise(1)
    # 288 draws: their root mean square is off by 1/sqrt(2 * 288) = 4%; five times that never.
    assert np.sqrt(np.mean(first**2)) == pytest.approx(0.5, rel=0.2)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.3  # five standard deviations
    assert_bitwise_equal(gradient(noisy), gradient(noisy))


def test_a_plain_function_around_a_step_adds_a_metric(recipe: Any, plugins: Any) -> None:
    result = fit(recipe(plugins=plugins("norm")))
    last = (result.directory / "metrics.jsonl").read_text().splitlines()[-1]
    squares = [np.sum(np.square(leaf, dtype=np.float64)) for leaf in leaves(result.state.params)]
    assert json.loads(last)["param_norm"] == pytest.approx(np.sqrt(sum(squares)), rel=1e-5)
    # And the step that it wraps keeps its own state and its guard.
    assert set(result.state.extra["gradient"]) == {
        "skipped",
        "skipped_in_a_row",
        "first_nonfinite",
    }


@pytest.mark.parametrize("names", [["average"], ["average", "norm"], ["norm", "average"]])
def test_a_step_with_state_of_its_own_keeps_it_under_other_wrappers(
    plugins: Any, names: list[str]
) -> None:
    parts = build(recipe(plugins=plugins(*names, average={"decay": 0.5})))
    state = parts.state()
    expected = host(state.params)
    for step in range(3):
        state, metrics = parts.step(state, parts.batch(step))
        expected = jax.tree.map(lambda a, p: 0.5 * a + 0.5 * p, expected, host(state.params))
        assert ("param_norm" in metrics) == ("norm" in names)
    assert set(state.extra) == {"gradient", "spikes", "average"}
    # Halves are exact and a sum of two is rounded once, or not at all where it is fused.
    for found, wanted in zip(leaves(state.extra["average"]), leaves(expected), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=3e-7, atol=1e-8)


def test_the_state_of_a_wrapper_is_saved_and_restored(
    recipe: Any, plugins: Any, tmp_path: Any
) -> None:
    def config(name: str, steps: int) -> Any:
        return recipe(
            run={"directory": str(tmp_path / name), "steps": steps},
            checkpoint={"use": "orbax", "every": 2},
            plugins=plugins("average", "norm"),
        )

    whole = fit(config("whole", 4))
    fit(config("parts", 2))
    resumed = fit(config("parts", 4))
    assert resumed.resumed_from == 2
    assert_bitwise_equal(resumed.state, whole.state)
    assert not np.array_equal(
        whole.state.extra["average"]["out"]["kernel"], whole.state.params["out"]["kernel"]
    )


def test_an_average_is_evaluated_in_the_run_and_after_it(
    recipe: Any, plugins: Any, tmp_path: Any, capsys: Any
) -> None:
    result = fit(
        recipe(
            run={"eval_every": 2, "eval_batches": 2},
            checkpoint={"use": "orbax"},
            plugins=plugins("average"),
        )
    )
    run = str(tmp_path / "run")
    found = []
    for choice in ([], ["--params=average"]):
        assert cli.run(["evaluate", run, "--json", *choice]) == 0
        found.append(json.loads(capsys.readouterr().out)["eval_loss"])
    # The same program on the same parameters.
    assert found == [result.metrics["eval_loss"], result.metrics["eval_loss_of_average"]]
    assert found[0] != found[1]
    assert cli.run(["evaluate", run, "--params=gradient"]) == 2
    assert "no parameters of that name; it keeps: average" in capsys.readouterr().err


def test_a_skipped_step_is_skipped_under_a_wrapper_too(plugins: Any) -> None:
    parts = build(
        recipe(plugins=plugins("average", "norm", average={"decay": 0.5}), data={"nan_loss": [0]})
    )
    before = parts.state()
    kept = host(before.params)
    after, metrics = parts.step(before, parts.batch(0))
    assert_bitwise_equal(after.params, kept)
    assert_bitwise_equal(after.extra["average"], kept)
    assert metrics["skipped_steps"] == 1


@pytest.mark.eight_devices
def test_the_state_of_a_wrapper_lies_like_the_parameters(plugins: Any) -> None:
    parts = build(
        recipe(plugins=plugins("average"), shard={"mesh": {"data": 2, "fsdp": 2, "tensor": 2}})
    )
    shardings = parts.program.shardings.state
    assert shardings.extra["average"] == shardings.params
    state, _ = parts.step(parts.state(), parts.batch(0))
    kernel = state.extra["average"]["hidden"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (4, 8)


@pytest.mark.long
@pytest.mark.usefixtures("plugins")
class TestAverage(PluginSuite):
    """What every plugin must hold to, of the one that docs/hooks.md shows."""

    use = "average:Average"


def leaves(tree: Any) -> list[np.ndarray]:
    return jax.tree.leaves(host(tree))
