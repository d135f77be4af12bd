"""A decoder on many devices is the decoder on one: in both frameworks, accumulated or not."""

from __future__ import annotations

import collections
import functools
import itertools
import json
import math
from pathlib import Path
from typing import Any

import attrs
import decoders
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command import PERCEPTRON
from decoders import FRAMEWORKS, SMALL
from order import unordered
from programs import Parts, assert_bitwise_equal, build, host, recipe

from trainer_core import UserError, cli
from trainer_core.decoder import DecoderConfig
from trainer_core.plan.cost import Cost, cost_of
from trainer_core.plan.memory import drawing_bytes
from trainer_core.randomness import fold
from trainer_core.types import Gradient

pytest.importorskip("trainer_nnx")
pytest.importorskip("trainer_linen")
pytestmark = [pytest.mark.usefixtures("quick_compiles"), pytest.mark.eight_devices]

MESHES = {
    "fsdp": {"data": 1, "fsdp": 8},
    "fsdp and tensor": {"data": 1, "fsdp": 4, "tensor": 2},
    "all three": {"data": 2, "fsdp": 2, "tensor": 2},
}
STEPS = 4
# Float32 rounds by 6e-8. A gradient is a sum over at most 8 x 6 tokens and 24 inner elements of
# products of six matrices, added up in another order: 100 roundings, most of which cancel. SGD
# adds it to the parameters with a rate of 0.1 once a step.
REASSOCIATION = 6e-6


@functools.cache
def built(devices: int, framework: str, tables: str) -> Parts:
    given = json.loads(tables)
    return build(
        recipe(
            **{
                "model": {**SMALL, "use": framework, "width": 16, **given.pop("model", {})},
                "data": {"use": "decoders:Tokens", "batch_size": 32},
                "optimizer": {"use": "sgd"},
                **given,
            }
        ),
        devices=jax.devices()[:devices],
    )


def on(mesh: dict[str, int], framework: str = "nnx", **tables: Any) -> Parts:
    devices = int(np.prod(list(mesh.values())))
    return built(devices, framework, json.dumps({"shard": {"mesh": mesh}, **tables}))


def trained(parts: Parts) -> tuple[Any, list[float]]:
    """Return the initial state, and the losses of some steps."""
    state, losses = parts.state(), []
    initial = host(state)
    for step in range(STEPS):
        state, metrics = parts.step(state, parts.batch(step))
        losses.append(float(metrics["loss"]))
    return initial, losses


@functools.cache
def trained_on_one(framework: str, tables: str) -> tuple[Any, list[float]]:
    return trained(on({"data": 1}, framework, **json.loads(tables)))


ONES = [("all three", 4, "linen")]
OTHERS = [
    each
    for each in itertools.product(MESHES, [1, 4], FRAMEWORKS)
    if each not in ONES and not (each[1] == 4 and each[0] == "fsdp")
]


@pytest.mark.parametrize(
    ("mesh", "microbatches", "framework"),
    [*ONES, *(pytest.param(*each, marks=pytest.mark.long) for each in OTHERS)],
)
def test_the_losses_are_those_of_one_device(mesh: str, microbatches: int, framework: str) -> None:
    """With dropout, ragged weights and packed documents, from the same bits on."""
    accumulate = {"microbatches": microbatches}
    initial, found = trained(on(MESHES[mesh], framework, accumulate=accumulate))
    begun, expected = trained_on_one(framework, json.dumps({"accumulate": accumulate}))
    assert_bitwise_equal(initial, begun)
    for step in range(STEPS):
        assert found[step] == pytest.approx(expected[step], rel=(step + 1) * REASSOCIATION)
    assert abs(expected[1] - expected[0]) > 1e-3 * expected[0]


OPTIMIZERS = {
    "adafactor": {"transform": "optax:adafactor", "arguments": {"min_dim_size_to_factor": 4}},
    "masked": {"transform": "optimizers:masked_decay"},
}


@pytest.mark.parametrize(
    ("optimizer", "framework"),
    [
        ("adafactor", "nnx"),
        pytest.param("adafactor", "linen", marks=pytest.mark.long),
        pytest.param("masked", "nnx", marks=pytest.mark.long),
        pytest.param("masked", "linen", marks=pytest.mark.long),
    ],
)
def test_a_step_of_any_optimizer_spread_by_zero1_is_that_of_one_device(
    optimizer: str, framework: str
) -> None:
    tables = {
        "optimizer": {"use": "optax", **OPTIMIZERS[optimizer]},
        "schedule": {"learning_rate": 0.003},
        "model": {"dropout": 0.0},
    }
    mesh = {"data": 2, "fsdp": 4}
    spread = on(mesh, framework, shard={"mesh": mesh, "optimizer_state": "zero1"}, **tables)
    over_data = [
        leaf
        for leaf in jax.tree.leaves(spread.program.shardings.state.opt_state)
        if "data" in str(leaf.spec)
    ]
    assert over_data
    _, found = trained(spread)
    _, expected = trained_on_one(framework, json.dumps(tables))
    # Both divide a gradient by its own size: a rounding of it moves the loss by no more than SGD's.
    assert found[:2] == pytest.approx(expected[:2], rel=2 * REASSOCIATION)
    assert abs(expected[1] - expected[0]) > 100 * REASSOCIATION * expected[0]


@pytest.mark.long
def test_many_arrays_on_many_devices_are_saved_and_gone_on_with(tmp_path: Path) -> None:
    """Digests are a program each, whose collectives once waited for each other's threads."""

    def run(steps: int) -> Any:
        return decoders.trained(
            tmp_path,
            "nnx",
            steps,
            model={"scan": False, "layers": 4},
            shard={"mesh": {"data": 1, "fsdp": 4, "tensor": 2}},
            checkpoint={"use": "orbax", "every": 2},
        )

    run(2)
    assert run(4).resumed_from == 2


def test_a_run_that_goes_on_with_another_mesh_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["train", *PERCEPTRON, f"run.directory={tmp_path / 'run'}", "run.eval_every=0"]
    run += ["schedule.use=constant", "schedule.warmup=0"]
    first, second = "shard.mesh={data=1, fsdp=8}", "shard.mesh={data=2, fsdp=4}"
    assert cli.run([*run, first, "run.steps=1", "--quiet"]) == 0
    assert cli.run([*run, second, "run.steps=2"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "from the checkpoint of step 1, made on 8 x CPU, mesh fsdp 8" in shown
    assert cli.run([*run, first, "run.steps=3", "--json"]) == 0
    done = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert done["resumed_from"] == 2
    assert done["devices"] == "8 x CPU, mesh fsdp 8"
    assert done["devices_before"] == "8 x CPU, mesh data 2 x fsdp 4"


LARGE = {"width": 64, "mlp": 512, "vocab": 512, "layers": 8}
MANY = {"width": 64, "vocab": 50304}


@pytest.mark.parametrize(
    ("mesh", "model", "optimizer"),
    [
        ("all three", LARGE, "adamw"),
        ("fsdp", {**LARGE, "param_dtype": "bfloat16"}, "sgd"),
        pytest.param("fsdp", {**LARGE, "scan": False}, "sgd", marks=pytest.mark.long),
        pytest.param("fsdp", {**MANY, "param_dtype": "bfloat16"}, "sgd", marks=pytest.mark.long),
    ],
)
def test_no_device_ever_holds_more_than_its_share_of_the_initial_state(
    mesh: str, model: dict[str, Any], optimizer: str
) -> None:
    parts = on(MESHES[mesh], model=model, optimizer={"use": optimizer})
    leaves = jax.tree.leaves(parts.program.abstract_state)
    share = sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves
    )
    memory = parts.program.initialise.lower(jax.random.key(0)).compile().memory_analysis()
    assert memory.output_size_in_bytes == share + 8 * len(leaves)  # a pointer to each
    # While they are made, too: one is drawn after the other, none is whole.
    small = 64 * len(leaves)  # keys, constants, and what only the smallest take
    assert memory.temp_size_in_bytes <= drawing_bytes(parts.program) + small

    before = {id(each) for each in jax.live_arrays()}
    state = parts.state()
    held: collections.Counter[Any] = collections.Counter()
    for array in jax.live_arrays():
        if id(array) not in before:
            for shard in array.addressable_shards:
                held[shard.device] += shard.data.nbytes
    key = jax.random.key_data(state.key).nbytes  # of the seed, on one device
    assert max(held.values()) <= share + key
    assert min(held.values()) == share


@pytest.mark.parametrize(
    "model",
    [
        {},
        pytest.param({"scan": False}, marks=pytest.mark.long),
        pytest.param({"param_dtype": "bfloat16"}, marks=pytest.mark.long),
    ],
)
def test_what_is_drawn_in_turn_has_the_bits_of_what_is_drawn_alone(model: dict[str, Any]) -> None:
    parts = on(MESHES["all three"], model={"width": 64, **model})
    config = DecoderConfig(**{**SMALL, "width": 64, **model})

    @functools.partial(jax.jit, static_argnums=(0, 1, 2))
    def alone(path: str, shape: tuple[int, ...], std: float) -> Any:
        key = fold(jax.random.key(0), "init", path)
        return (jax.random.normal(key, shape, jnp.float32) * std).astype(config.param_dtype)

    params = parts.state().params
    std = 1 / math.sqrt(2 * config.layers) / math.sqrt(config.mlp)
    down = alone("layers/mlp/down/kernel", (config.layers, config.mlp, 64), std)
    found = params["layers"]
    if not config.scan:
        layers = [found[str(layer)]["mlp"]["down"]["kernel"] for layer in range(config.layers)]
        assert_bitwise_equal(layers, list(down))
    else:
        assert_bitwise_equal(found["mlp"]["down"]["kernel"], down)
    embedding = alone("embed/embedding", (config.vocab, 64), 1 / 8)
    assert_bitwise_equal(params["embed"]["embedding"], embedding)


@attrs.frozen
class Compiled:
    """The gradient of a batch in four parts: what it is, what it costs, what it needs."""

    gradient: Gradient
    cost: Cost
    temporaries: int
    unordered: list[tuple[str, str]]


@functools.cache
def gradient_on(
    mesh: str, framework: str = "nnx", scan: bool = True, **accumulate: Any
) -> Compiled:
    parts = on(
        json.loads(mesh),
        framework,
        model={"dropout": 0.0, "scan": scan},
        accumulate={"microbatches": 4, **accumulate},
    )
    state, batch = parts.state(), parts.batch(0)
    given = (state.params, state.buffers, batch, jax.random.key(0))
    compiled = jax.jit(parts.grad_fn).lower(*given).compile()
    text = compiled.as_text()
    return Compiled(
        gradient=host(compiled(*given)),
        cost=cost_of(text),
        temporaries=compiled.memory_analysis().temp_size_in_bytes,
        unordered=unordered(text),
    )


def assert_same_gradient(found: Compiled, expected: Compiled) -> None:
    for one, other in zip(
        jax.tree.leaves(found.gradient), jax.tree.leaves(expected.gradient), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=0, atol=REASSOCIATION * np.abs(other).max())


def test_gradients_are_added_up_once_where_asked() -> None:
    """Of four microbatches, each would be summed over all devices: three times more bytes."""
    each, once = gradient_on('{"data": 8}'), gradient_on('{"data": 8}', reduce="once")
    assert_same_gradient(once, each)
    gradient = sum(leaf.nbytes for leaf in jax.tree.leaves(each.gradient.grads))
    assert each.cost.bytes - once.cost.bytes >= 3 * gradient
    assert set(once.cost.collectives) == {"all-reduce"}


@pytest.mark.long
def test_beside_a_tensor_axis_they_are_too() -> None:
    mesh = '{"data": 4, "tensor": 2}'
    each, once = gradient_on(mesh), gradient_on(mesh, reduce="once")
    assert_same_gradient(once, each)
    assert once.cost.bytes < each.cost.bytes
    # 12 microbatches of rows on a device: no row has moved.
    assert "all-to-all" not in once.cost.collectives


@pytest.mark.parametrize(
    ("framework", "scan"),
    [
        ("nnx", True),
        pytest.param("nnx", False, marks=pytest.mark.long),
        pytest.param("linen", True, marks=pytest.mark.long),
    ],
)
def test_devices_talk_in_one_order_alone(framework: str, scan: bool) -> None:
    """Or processes on CPUs, where XLA leaves it open, would wait for each other for ever."""
    assert gradient_on('{"data": 1, "fsdp": 8}', framework, scan).unordered == []


def test_what_has_no_order_is_found() -> None:
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread, whole = (jax.NamedSharding(mesh, jax.P(axis)) for axis in ("data", None))

    def summed(parts: Any, other: Any) -> Any:
        sums = jax.lax.map(jnp.sum, parts)
        return sums, jax.lax.with_sharding_constraint(other, whole)

    given = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((4, 64), (64,))]
    rows = jax.NamedSharding(mesh, jax.P(None, "data"))
    text = jax.jit(summed, in_shardings=(rows, spread)).lower(*given).compile().as_text()
    assert len(unordered(text)) == 1


@pytest.mark.long
def test_beside_fsdp_less_crosses_the_data_axis() -> None:
    mesh = '{"data": 2, "fsdp": 4}'
    each, once = gradient_on(mesh), gradient_on(mesh, reduce="once")
    assert_same_gradient(once, each)

    def across(cost: Cost) -> float:
        """Bytes that a device sends where some of a group are of the other four."""
        return sum(one.sent for one in cost.exchanges if len({at // 4 for at in one.group}) == 2)

    # A part of each gradient, and a few numbers more, crosses four times, or once.
    assert 0 < across(once.cost) < across(each.cost) / 2


@pytest.mark.long
def test_microbatches_gather_no_more_than_each_of_them_would_alone() -> None:
    mesh = '{"data": 1, "fsdp": 8}'
    four, one = (gradient_on(mesh, microbatches=count).cost.by_kind for count in (4, 1))
    assert 0 < four["all-gather"].count <= 4 * one["all-gather"].count
    assert four["all-gather"].bytes <= 4 * one["all-gather"].bytes
    assert set(four) <= set(one)


def test_the_sum_of_gradients_can_lie_over_the_data_axis_too() -> None:
    each, spread = gradient_on('{"data": 8}'), gradient_on('{"data": 8}', gradients="zero2")
    assert_same_gradient(spread, each)
    gradient = sum(leaf.nbytes for leaf in jax.tree.leaves(each.gradient.grads))
    # All of it but an eighth, and the head norms, whose 4 elements no 8 devices divide.
    assert each.temporaries - spread.temporaries >= 0.75 * gradient
    # The CPU's compiler adds up and cuts; an accelerator's has reduce-scatter for both.
    assert spread.cost == each.cost


@pytest.mark.parametrize(
    ("accumulate", "mesh", "said"),
    [
        (
            {"reduce": "once", "gradients": "zero2"},
            {"data": 8},
            'excludes gradients = "zero2"',
        ),
        ({"reduce": "once"}, {"data": 1, "fsdp": 8}, "no mesh axis spreads rows alone"),
    ],
)
def test_what_cannot_be_reduced_once_is_refused(accumulate: Any, mesh: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        on(mesh, accumulate={"microbatches": 4, **accumulate})


def test_buffers_cannot_be_reduced_once() -> None:
    with pytest.raises(UserError, match="the model has buffers, such as batch statistics"):
        build(
            recipe(
                data={"batch_size": 32},
                shard={"mesh": {"data": 8}},
                accumulate={"microbatches": 4, "reduce": "once"},
            )
        )
