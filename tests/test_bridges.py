"""A model that mixes Linen and NNX is trained, spread over devices and resumed as any other."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import assert_bitwise_equal, recipe

from trainer_core import Model, Term, UserError, cross_entropy, fit
from trainer_core.loop import Result

pytest.importorskip("trainer_nnx")
pytest.importorskip("trainer_linen")
pytest.importorskip("trainer_checkpoint")

import bridged
from bridged import InLinen, InNNX
from flax import linen as nn
from flax import nnx
from trainer_linen import as_model as linen_model
from trainer_linen import with_info
from trainer_nnx import as_model as nnx_model

BATCH = bridged.rows()
KEY = jax.random.key(5)
MIXED = ("InNNX", "InLinen")
KERNELS = {"InNNX": "block/Dense_0/kernel", "InLinen": "block/layers/0/kernel"}


# ---------------------------------------------------------------------------- whole runs


def trained(directory: Path, mixed: str) -> Result:
    """Train for 4 steps, or go on from the newest checkpoint, of step 2 or 4."""
    framework = "nnx-module" if mixed == "InNNX" else "linen-module"
    return fit(
        recipe(
            run={"directory": str(directory), "steps": 4},
            model={"use": framework, "module": f"bridged:{mixed}", "coefficients": {"size": 0.01}},
            data={"use": "bridged:Rows"},
            accumulate={"microbatches": 2},
            checkpoint={"use": "orbax", "every": 2},
            shard={
                "mesh": {"data": 2, "tensor": 4},
                "rules": {"mlp": "tensor", "embed": "data"},
            },
        )
    )


@pytest.mark.eight_devices
@pytest.mark.parametrize("mixed", MIXED)
def test_a_mixed_model_is_spread_by_the_names_in_its_block_and_goes_on_after_a_stop(
    mixed: str, tmp_path: Path, quick_compiles: None
) -> None:
    unbroken = trained(tmp_path, mixed)
    shutil.rmtree(tmp_path / "checkpoints" / "4")  # as if killed after the checkpoint of step 2
    result = trained(tmp_path, mixed)
    assert_bitwise_equal(result.state, unbroken.state)
    kernel = result.state.params
    for key in KERNELS[mixed].split("/"):
        kernel = kernel[key]
    assert kernel.sharding.spec == jax.sharding.PartitionSpec("data", "tensor")
    assert {"loss/loss", "loss/size"} <= set(result.metrics)


# ---------------------------------------------------------------------------- within a step


def model_of(mixed: str) -> Model:
    return nnx_model(InNNX) if mixed == "InNNX" else linen_model(InLinen(), BATCH)


Call = Callable[[Any, bool], Any]


@pytest.fixture(scope="module", params=MIXED)
def call(request: pytest.FixtureRequest, quick_compiles: None) -> Call:
    """Return `call(key, train)`: terms and buffers after a call, from the first state."""
    model = model_of(request.param)
    state = jax.jit(model.init)(KEY)
    terms = jax.jit(model.terms, static_argnums=4)
    return lambda key, train: terms(*state, BATCH, key, train)


def test_the_masks_of_a_bridged_block_are_the_keys_alone(call: Call) -> None:
    keys = [jax.random.fold_in(KEY, step) for step in (0, 0, 1, 2)]
    losses = [float(call(key, True)[0]["loss"].sum) for key in keys]
    assert losses[0] == losses[1]
    assert len(set(losses)) == 3


def test_an_evaluation_drops_nothing_and_changes_no_statistics(call: Call) -> None:
    (one, after), (other, again) = (call(jax.random.key(seed), False) for seed in (1, 2))
    assert float(one["loss"].sum) == float(other["loss"].sum)
    assert_bitwise_equal(after, again)
    assert {float(np.max(np.abs(mean))) for mean in means(after)} == {0.0}


def test_training_changes_the_statistics_of_a_bridged_block(call: Call) -> None:
    assert all(np.all(mean != 0) for mean in means(call(KEY, True)[1]))


def means(buffers: Any) -> list[Any]:
    leaves = jax.tree_util.tree_leaves_with_path(buffers)
    found = [leaf for path, leaf in leaves if path[-1].key == "mean"]
    assert len(found) == 1
    return found


@pytest.mark.parametrize("train", [True, False])
def test_a_term_that_a_bridged_block_sows_is_a_term_of_the_loss(call: Call, train: bool) -> None:
    found = call(KEY, train)[0]
    assert set(found) == {"loss", "size"}
    assert float(found["size"].weight) == 16
    assert float(found["size"].sum) > 0


def test_a_stream_without_a_name_in_the_recipe_is_seeded_anew_at_each_step() -> None:
    class Noisy(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.scale, self.rngs = nnx.Param(jnp.ones(())), rngs

        def __call__(self) -> jax.Array:
            return self.scale * jax.random.normal(self.rngs.noise())

    def noise(module: Any, batch: Any) -> dict[str, Term]:
        return {"noise": Term(module(), 1.0)}

    model = linen_model(nnx.bridge.to_linen(Noisy), BATCH, noise)
    keys = [jax.random.key(step) for step in (1, 1, 2)]
    seen = [
        float(model.terms({"scale": 1.0}, {}, BATCH, key, True)[0]["noise"].sum) for key in keys
    ]
    assert seen[0] == seen[1] != seen[2]


# ---------------------------------------------------------------------------- what is known


def told(model: Model) -> dict[str, tuple[str, str]]:
    """Return the kind of each parameter, and the names and roles of its axes, by its path."""
    return {
        info.path: (info.kind, " ".join(f"{axis.name}:{axis.role}" for axis in info.axes))
        for info in jax.tree.leaves(model.params)
    }


@pytest.mark.parametrize(
    ("mixed", "norm"), [("InNNX", "block/BatchNorm_0"), ("InLinen", "block/norm")]
)
def test_kinds_roles_and_names_are_those_of_the_layers_in_the_block(mixed: str, norm: str) -> None:
    model = model_of(mixed)
    assert told(model) == {
        KERNELS[mixed]: ("matrix", "embed:in mlp:out"),
        KERNELS[mixed].replace("kernel", "bias"): ("bias", "None:out"),
        f"{norm}/scale": ("norm", "None:other"),
        f"{norm}/bias": ("bias", "None:out"),
        "out/kernel": ("matrix", "None:in None:out"),
        "out/bias": ("bias", "None:out"),
    }
    paths = {info.path for info in jax.tree.leaves(model.buffers)}
    assert paths == {f"{norm}/mean", f"{norm}/var"}


def test_what_a_linen_block_says_of_its_own_parameter_arrives_in_nnx() -> None:
    init = with_info(
        nn.initializers.normal(), names=("embed", None), kind="router", roles=("in", "out")
    )
    assert told(nnx_model(partial(Held, nn.Dense(3, kernel_init=init))))["held/kernel"] == (
        "router",
        "embed:in None:out",
    )


def test_what_an_nnx_block_says_of_its_own_parameter_arrives_in_linen() -> None:
    class Block(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            about = {"out_sharding": ("embed", None), "kind": "router", "roles": ("in", "out")}
            self.kernel = nnx.Param(jnp.zeros((8, 3)), **about)

        def __call__(self, x: jax.Array) -> jax.Array:
            return x @ self.kernel

    model = linen_model(nnx.bridge.to_linen(Block), BATCH, loss_of)
    assert told(model) == {"kernel": ("router", "embed:in None:out")}


def test_the_names_of_a_linen_block_apply_nowhere_under_a_mesh_either() -> None:
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh):
        model = nnx_model(partial(InNNX, named=nn.with_partitioning))
        state = jax.eval_shape(model.init, KEY)
        jax.eval_shape(lambda *state: model.terms(*state, BATCH, KEY, True), *state)
    assert told(model)["block/Dense_0/kernel"] == ("matrix", "embed:in mlp:out")


def test_a_constructor_that_initialises_linen_by_itself_gets_plain_arrays() -> None:
    class Own(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            made = nn.Dense(3).init(rngs.params(), jnp.zeros((1, 8)))["params"]
            self.kernel = nnx.Param(made["kernel"])

    assert told(nnx_model(Own, loss_of)) == {"kernel": ("other", "None:other None:other")}


# ---------------------------------------------------------------------------- stacked layers


class Held(nnx.Module):
    """Holds a Linen module, initialised or not."""

    def __init__(self, held: nn.Module, rngs: nnx.Rngs, lazily: bool = True) -> None:
        self.held = nnx.bridge.ToNNX(held, rngs=rngs)
        if lazily:
            self.held.lazy_init(jnp.zeros((1, 8)))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.held(x)

    def terms(self, batch: Any) -> dict[str, Term]:
        return loss_of(self, batch)


def loss_of(module: Any, batch: Any) -> dict[str, Term]:
    return {"loss": cross_entropy(module(batch["x"]), batch["labels"])}


class Linear(nnx.Module):
    """A layer for `nn.scan`, whose kernel has axis names or not."""

    def __init__(self, named: Any, *, rngs: nnx.Rngs, keeps: bool = False) -> None:
        init = nnx.initializers.lecun_normal()
        init = named(init, ("embed", "mlp")) if named else init
        self.linear = nnx.Linear(8, 8, kernel_init=init, rngs=rngs)
        self.rngs = rngs if keeps else None

    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.tanh(self.linear(x))


class Scanned(nn.Module):
    """Three bridged NNX layers, stacked by `nn.scan`."""

    named: Any = None
    keeps: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def layer(module: nn.Module, x: jax.Array, _: None) -> tuple[jax.Array, None]:
            return nnx.bridge.to_linen(Linear, self.named, keeps=self.keeps, name="layer")(x), None

        scan = nn.scan(
            layer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=3,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        return scan(self, x, None)[0]


class Stack(nn.Module):
    """A Linen block that stacks layers of its own, along the second axis."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def layer(module: nn.Module, x: jax.Array, _: None) -> tuple[jax.Array, None]:
            init = nn.with_partitioning(nn.initializers.lecun_normal(), ("embed", "mlp"))
            return nn.Dense(8, kernel_init=init, name="layer")(x), None

        scan = nn.scan(
            layer,
            variable_axes={"params": 1},
            split_rngs={"params": True},
            length=3,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        return scan(self, x, None)[0]


class StackedInNNX(nnx.Module):
    """Three bridged Linen layers, stacked by `nnx.vmap` and run by `nnx.scan`."""

    def __init__(self, rngs: nnx.Rngs, metadata: dict[str, str] | None = None) -> None:
        init = nn.with_partitioning(nn.initializers.lecun_normal(), ("embed", "mlp"))
        options = {"transform_metadata": metadata} if metadata else {}

        @nnx.split_rngs(splits=3)
        @partial(nnx.vmap, **options)
        def stack(rngs: nnx.Rngs) -> Any:
            dense = nnx.bridge.ToNNX(nn.Dense(8, kernel_init=init), rngs=rngs)
            return dense.lazy_init(jnp.zeros((1, 8)))

        self.layer, self.options = stack(rngs), options

    def __call__(self, x: jax.Array) -> jax.Array:
        scan = partial(nnx.scan, in_axes=(nnx.Carry, 0), out_axes=nnx.Carry, **self.options)
        found: jax.Array = scan(lambda x, layer: jnp.tanh(layer(x)))(x, self.layer)
        return found


NAMED = {nnx.PARTITION_NAME: "layers"}
STACKS = {
    "nn.scan": lambda: linen_model(Scanned(), BATCH, loss_of, lambda m, b: m(b["x"])),
    "nnx.scan": lambda: nnx_model(
        partial(StackedInNNX, metadata=NAMED), loss_of, lambda m, b: m(b["x"])
    ),
}


@pytest.mark.parametrize("stacked", STACKS)
def test_bridged_layers_that_are_stacked_compute_what_they_do_one_by_one(
    stacked: str, quick_compiles: None
) -> None:
    model = STACKS[stacked]()
    logits = model.logits
    assert logits is not None

    @jax.jit
    def run(key: jax.Array) -> Any:
        params, buffers = model.init(key)
        return params, logits(params, buffers, BATCH)

    params, found = jax.tree.map(np.asarray, run(KEY))
    biases, kernels = jax.tree.leaves(params)
    assert len({kernel.tobytes() for kernel in kernels}) == 3
    x = BATCH["x"]
    for kernel, bias in zip(kernels, biases, strict=True):
        x = np.tanh(x @ kernel + bias)
    # Numpy adds in another order: a few units in the last place, of values below 1.
    np.testing.assert_allclose(found, x, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("model", "kernel", "axes"),
    [
        (STACKS["nn.scan"], "layer/linear/kernel", "None:stack None:in None:out"),
        (STACKS["nnx.scan"], "layer/kernel", "layers:stack embed:in mlp:out"),
        (
            lambda: nnx_model(partial(Held, Stack())),
            "held/layer/kernel",
            "embed:in layers:stack mlp:out",
        ),
        (
            lambda: linen_model(Scanned(nnx.bridge.with_partitioning), BATCH, loss_of),
            "layer/linear/kernel",
            "layers:stack embed:in mlp:out",
        ),
    ],
)
def test_stacked_layers_have_an_axis_more_by_its_name(model: Any, kernel: str, axes: str) -> None:
    assert told(model())[kernel] == ("matrix", axes)


class Rematerialised(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.remat(nnx.bridge.ToLinen)(Linear, (None,), name="layer")(x)


def rematerialised(module: Any, batch: Any) -> dict[str, Term]:
    apply = nnx.remat(lambda held, x: held(x))
    return {"loss": cross_entropy(apply(module.held, batch["x"]), batch["labels"])}


@pytest.mark.parametrize(
    ("make", "kernel"),
    [
        (lambda: linen_model(Rematerialised(), BATCH, loss_of), "layer/linear/kernel"),
        (lambda: nnx_model(partial(Held, nn.Dense(3)), rematerialised), "held/kernel"),
    ],
)
def test_remat_may_be_around_a_bridge(make: Any, kernel: str) -> None:
    model = make()
    params, _ = jax.eval_shape(model.init, KEY)
    loss = jax.grad(lambda params: model.terms(params, {}, BATCH, KEY, True)[0]["loss"].sum)
    program = str(jax.make_jaxpr(loss)(params))
    assert "remat" in program or "checkpoint" in program
    assert told(model)[kernel] == ("matrix", "None:in None:out")


# ---------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: linen_model(Scanned(nnx.with_partitioning), BATCH, loss_of),
            r"^layer/linear/kernel has the axis names \('embed', 'mlp'\) in an NNX module, and "
            r"Flax loses them when nn.scan.*; unroll the layers, keep one framework inside",
        ),
        (
            lambda: linen_model(Scanned(keeps=True), BATCH, loss_of),
            r'^layer, an NNX module, keeps its rngs.*add "default": True to its split_rngs',
        ),
        (
            lambda: nnx_model(StackedInNNX, loss_of),
            r"^layer/kernel has shape \(3, 8, 8\) and the axis names.*nnx.transform_metadata",
        ),
    ],
)
def test_stacked_layers_that_cannot_work_are_refused(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


class Counting(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        self.variable("counts", "calls", lambda: jnp.zeros(())).value += 1
        return nn.Dense(3)(x)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(Held, nn.Dense(3), lazily=False), r"^held, a Linen module: .*call its lazy_init"),
        (partial(Held, Counting()), r"^held, a Linen module: .*counts.*mutable=\[...\]"),
    ],
)
def test_a_linen_block_that_is_not_called_as_it_must_be_is_named(make: Any, message: str) -> None:
    model = nnx_model(make)
    with pytest.raises(UserError, match=message):
        jax.eval_shape(lambda key: model.terms(*model.init(key), BATCH, key, True), KEY)


def test_an_array_of_an_nnx_block_that_linen_would_not_keep_is_refused() -> None:
    class Block(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.offsets = nnx.data(jnp.zeros(8))

    with pytest.raises(UserError, match=r"^offsets is an array of an NNX module.*make it one"):
        linen_model(nnx.bridge.to_linen(Block), BATCH, lambda module, batch: module())


@pytest.mark.parametrize(
    ("missing", "mixed", "message"),
    [
        ("trainer_linen.origins", "InNNX", "BatchNorm is a Linen .*: install trainer-linen-plugin"),
        ("trainer_nnx.infos", "InLinen", "block is an NNX .*: install trainer-nnx-plugin"),
    ],
)
def test_a_mixed_model_needs_both_plugins(
    missing: str, mixed: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UserError, match=message):
        model_of(mixed)
