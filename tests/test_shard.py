"""Every array lies where the rules say, on any mesh, and what is trained is the same."""

from __future__ import annotations

import contextlib
import functools
import json
import math
from importlib.metadata import version
from typing import Any

import attrs
import jax
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from packaging.version import Version
from programs import Parts, assert_bitwise_equal, build, host, recipe

from trainer_core import UserError, hookimpl, plugin
from trainer_core.axes import also_over
from trainer_core.config import load_config
from trainer_core.defaults.shard import Rules, derived_shardings
from trainer_core.fitting import check_shardings
from trainer_core.sharding_table import sharding_table
from trainer_core.terminal.summary import summary_rows
from trainer_core.types import Shardings

pytestmark = pytest.mark.usefixtures("quick_compiles")

MESHES = {
    "fsdp": {"data": 1, "fsdp": 8},
    "data and fsdp": {"data": 2, "fsdp": 4},
    "all three": {"data": 2, "fsdp": 2, "tensor": 2},
}
STEPS = 4
SGD = {"use": "sgd", "momentum": 0.9}


@functools.cache
def built(shard: str, optimizer: str) -> Parts:
    return build(
        recipe(
            model={"random_init": True},
            shard=json.loads(shard),
            optimizer=json.loads(optimizer),
            schedule={"learning_rate": 0.01},
        )
    )


def on(mesh: dict[str, int], optimizer: Any = SGD, **shard: Any) -> Parts:
    return built(json.dumps({"mesh": mesh, **shard}), json.dumps(optimizer))


def losses(parts: Parts) -> list[float]:
    state, found = parts.state(), []
    for step in range(STEPS):
        state, metrics = parts.step(state, parts.batch(step))
        found.append(float(metrics["loss"]))
    return found


@functools.cache
def losses_on_one_device() -> tuple[float, ...]:
    """The same step, compiled for one device."""
    program = on(MESHES["fsdp"]).program
    step = jax.jit(program.step.apply)
    state = jax.device_put(on(MESHES["fsdp"]).state(), jax.devices()[0])
    found = []
    for index in range(STEPS):
        state, metrics = step(state, jax.device_put(program.data.batch(index), jax.devices()[0]))
        found.append(float(metrics["loss"]))
    return tuple(found)


def local(leaf: jax.Array) -> tuple[int, ...]:
    shape: tuple[int, ...] = leaf.addressable_shards[0].data.shape
    return shape


@pytest.mark.eight_devices
@pytest.mark.parametrize(
    "mesh",
    [pytest.param(name, marks=[pytest.mark.long] * (name != "all three")) for name in MESHES],
)
def test_every_leaf_lies_where_it_was_declared_before_and_after_a_step(mesh: str) -> None:
    parts = on(MESHES[mesh])
    declared = parts.program.shardings.state
    state = parts.state()
    assert jax.tree.map(lambda leaf: leaf.sharding, state) == declared
    state, metrics = parts.step(state, parts.batch(0))
    assert jax.tree.map(lambda leaf: leaf.sharding, state) == declared
    assert all(each.sharding.is_fully_replicated for each in jax.tree.leaves(metrics))


@pytest.mark.eight_devices
@pytest.mark.parametrize("mesh", MESHES)
def test_parameters_are_spread_by_the_rules_of_their_axes(mesh: str) -> None:
    sizes = {"tensor": 1, **MESHES[mesh]}
    fsdp, tensor = sizes["fsdp"], sizes["tensor"]
    params = on(MESHES[mesh]).state().params
    # embed -> fsdp, mlp -> tensor, norm -> whole
    assert local(params["hidden"]["kernel"]) == (8 // fsdp, 16 // tensor)
    assert local(params["out"]["kernel"]) == (16 // tensor, 8 // fsdp)
    assert local(params["hidden"]["bias"]) == (16 // tensor,)
    assert local(params["gain"]) == (16,)
    batch = on(MESHES[mesh]).batch(0)
    assert local(batch["x"]) == (16 // (sizes["data"] * fsdp), 8)


@pytest.mark.eight_devices
@pytest.mark.parametrize("mesh", MESHES)
def test_the_optimizer_state_lies_like_the_parameters(mesh: str) -> None:
    shardings = on(MESHES[mesh]).program.shardings.state
    momentum = jax.tree.leaves(shardings.opt_state)[: len(jax.tree.leaves(shardings.params))]
    assert momentum == jax.tree.leaves(shardings.params)


@pytest.mark.eight_devices
@pytest.mark.parametrize("refuse_meshes", [False, True])
def test_optimizer_state_that_hides_what_it_belongs_to_is_found_by_its_path(
    refuse_meshes: bool,
) -> None:
    optimizer = {
        "use": "optax",
        "transform": "models:by_shape_alone",
        "arguments": {"refuse_meshes": refuse_meshes},
    }
    parts = on(MESHES["all three"], optimizer)
    shardings = parts.program.shardings.state
    assert shardings.opt_state["momentum"] == shardings.params
    state, _ = parts.step(parts.state(), parts.batch(0))
    assert jax.tree.map(lambda leaf: leaf.sharding, state) == shardings


@pytest.mark.eight_devices
def test_factored_optimizer_state_is_spread_along_the_axis_that_it_keeps() -> None:
    optimizer = {
        "use": "optax",
        "transform": "optax:adafactor",
        "arguments": {"min_dim_size_to_factor": 8},
    }
    parts = on(MESHES["all three"], optimizer)
    by_path = {
        jax.tree_util.keystr(path): leaf.spec
        for path, leaf in jax.tree_util.tree_leaves_with_path(
            parts.program.shardings.state.opt_state
        )
    }
    # Of hidden/kernel [embed, mlp]: one factor has a number for each row, the other for each
    # column.
    factors = {
        path: spec
        for path, spec in by_path.items()
        if path.endswith("['hidden']['kernel']") and (".v_row" in path or ".v_col" in path)
    }
    # Before these versions JAX does not carry a sharding into a factor, which then stays whole.
    carried = jax.__version_info__ >= (0, 10, 2) and Version(version("optax")) >= Version("0.2.8")
    spread = sorted(axis for spec in factors.values() for axis in spec if axis is not None)
    assert len(factors) == 2
    assert spread == (["fsdp", "tensor"] if carried else [])
    state, _ = parts.step(parts.state(), parts.batch(0))
    assert jax.tree.map(lambda leaf: leaf.sharding, state) == parts.program.shardings.state


def transformations() -> dict[str, optax.GradientTransformation]:
    """Every transformation of optax that can be made from its defaults and keeps arrays, and some
    for a part of the parameters each.
    """
    found = {}
    for module in (optax, optax.contrib):
        for name, make in vars(module).items():
            if name.startswith("_") or not callable(make):
                continue
            for arguments in ((), (0.1,)):
                with contextlib.suppress(Exception):
                    made = make(*arguments)
                    sizes = [leaf.size for leaf in jax.tree.leaves(jax.eval_shape(made.init, LAID))]
                    if isinstance(made, optax.GradientTransformation) and max(sizes) > 32:
                        found[name] = made
                        break
    first = {"layers": {"kernel": "adam"}, "kernel": "lion"}
    groups = {"adam": optax.adamw(0.1), "lion": optax.lion(0.1)}
    only_first = jax.tree.map(lambda label: label == "adam", first)
    return found | {
        "masked": optax.masked(optax.adamw(0.1), only_first),
        "partition": optax.partition(groups, first),
        "masked in a partition": optax.partition(
            groups
            | {"adam": optax.chain(optax.masked(optax.ema(0.9), only_first), optax.sgd(0.1))},
            first,
        ),
    }


LAID = {
    "layers": {"kernel": jax.ShapeDtypeStruct((3, 16, 32), np.float32)},
    "kernel": jax.ShapeDtypeStruct((16, 32), np.float32),
}


# Where the parameters lie on two mesh axes of 4 and 2 devices, and over which of these zero1 also
# spreads the optimizer's state.
PLACES: dict[str, tuple[tuple[str | None, ...], tuple[str, ...]]] = {
    "as parameters": (("first", "second"), ()),
    "zero1 beside fsdp": (("first", None), ("second",)),
    "zero1 alone": ((None, None), ("first", "second")),
}


@pytest.mark.eight_devices
@pytest.mark.parametrize("place", PLACES)
def test_the_state_of_every_transformation_of_optax_is_spread(place: str) -> None:
    mesh = jax.make_mesh((4, 2), ("first", "second"), axis_types=(AxisType.Auto,) * 2)
    axes, replicas = PLACES[place]
    lies = {
        "layers": {"kernel": NamedSharding(mesh, PartitionSpec(None, *axes))},
        "kernel": NamedSharding(mesh, PartitionSpec(*axes)),
    }
    made = transformations()
    assert len(made) >= 48
    for name, optimizer in made.items():

        def derive(params: Any, optimizer: Any = optimizer) -> Any:
            return optimizer.init(params), {}

        state = jax.eval_shape(optimizer.init, LAID)
        shardings, _ = derived_shardings(derive, LAID, lies, mesh)
        whole = held = 0
        for leaf, where in zip(jax.tree.leaves(state), jax.tree.leaves(shardings), strict=True):
            whole += leaf.size
            held += math.prod(also_over(leaf.shape, where, replicas).shard_shape(leaf.shape))
        # An eighth of what is large. GaLore's projections belong to no axis of a parameter, and
        # SM3 keeps a number a row, which a column's devices share.
        most = {"galore": 0.4, "scale_by_galore": 0.4, "sm3": 0.16, "scale_by_sm3": 0.16}
        assert held <= most.get(name, 0.13) * whole, name


@pytest.mark.eight_devices
def test_zero1_spreads_the_optimizer_state_alone_and_changes_no_loss() -> None:
    whole = on({"data": 8})
    spread = on({"data": 8}, optimizer_state="zero1")
    state = spread.state()
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state.params))
    sizes = [
        (leaf.size, np.prod(local(leaf))) for leaf in jax.tree.leaves(state.opt_state) if leaf.shape
    ]
    assert sizes
    assert all(size == 8 * on_each for size, on_each in sizes)
    assert losses(spread) == pytest.approx(losses(whole), rel=(STEPS + 1) * 5e-6)


@pytest.mark.eight_devices
@pytest.mark.parametrize("mesh", MESHES)
def test_the_losses_are_those_of_one_device(mesh: str) -> None:
    found, expected = losses(on(MESHES[mesh])), losses_on_one_device()
    # Sums in another order: 5e-6 for a loss and for a gradient, as test_accumulate derives. Each
    # update adds this much to the parameters, and at a learning rate of 0.01 no later step
    # makes it larger; so the loss of step n is off by n + 1 times as much at most.
    for step in range(STEPS):
        assert found[step] == pytest.approx(expected[step], rel=(step + 1) * 5e-6)
    # And one update more or less is far outside.
    assert abs(expected[1] - expected[0]) > 1e-3 * expected[0]


@pytest.mark.eight_devices
def test_initial_parameters_do_not_depend_on_the_mesh() -> None:
    program = on(MESHES["fsdp"]).program
    model = program.model
    from trainer_core.randomness import fold

    one = jax.jit(lambda key: model.init(fold(key, "init"))[0])(jax.random.key(0))
    for mesh in MESHES.values():
        assert_bitwise_equal(on(mesh).state().params, one)
    assert len(np.unique(host(one["hidden"]["kernel"]))) == 8 * 16  # random, and no two alike


@pytest.mark.eight_devices
def test_an_override_is_for_the_parameters_of_its_path_alone() -> None:
    usual = on(MESHES["all three"]).program.shardings.state
    placed = on(MESHES["all three"], overrides={"out/*": {"embed": "", "mlp": ["tensor", "fsdp"]}})
    params = placed.program.shardings.state.params
    assert params["hidden"] == usual.params["hidden"]
    assert params["out"]["kernel"].spec == PartitionSpec(("tensor", "fsdp"), None)
    momentum = jax.tree.leaves(placed.program.shardings.state.opt_state)
    assert momentum[: len(jax.tree.leaves(params))] == jax.tree.leaves(params)


@pytest.mark.eight_devices
def test_where_asked_an_axis_that_is_not_divided_stays_whole_and_is_reported() -> None:
    """12 = 2 x 6: over `data` it can be spread, over `fsdp` beside that it cannot."""
    tables = {
        "shard": {
            "mesh": {"data": 2, "fsdp": 4},
            "rules": {"embed": ["data", "fsdp"]},
            "uneven": "replicate",
        },
        "model": {"inputs": 12},
        "data": {"inputs": 12},
    }
    program = build(recipe(**tables)).program
    kernel = program.shardings.state.params["hidden"]["kernel"]
    assert kernel.spec == PartitionSpec("data", None)
    row = next(each for each in sharding_table(program) if each.path == "hidden/kernel")
    assert (row.bytes, row.bytes_on_device, row.copies) == (12 * 16 * 4, 6 * 16 * 4, 4)
    said = "embed of 12 cannot be spread over 8 devices (data x fsdp)"
    assert row.uneven == (said,)
    summary = dict(summary_rows(program.run, program))
    assert summary["uneven"] == f"hidden/kernel: {said}"


@pytest.mark.eight_devices
def test_the_table_has_every_array_with_what_a_device_really_holds() -> None:
    parts = on(MESHES["all three"], {"use": "adamw"})
    state = parts.state()
    rows = [row for row in sharding_table(parts.program) if row.part != "batch"]
    held = [leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state)]
    assert sorted(row.bytes_on_device for row in rows) == sorted(held)
    by_path = {row.path: row for row in rows}
    # embed -> fsdp, mlp -> tensor, of a parameter and of what AdamW keeps for it.
    for path in ("hidden/kernel", "0/mu/hidden/kernel"):
        assert by_path[path].axes == ("embed", "mlp")
        assert by_path[path].spec == (("fsdp",), ("tensor",))
        assert by_path[path].copies == 2
    assert by_path["gain"].copies == 8


# ------------------------------------------------------------------ mistakes


def refused(**tables: Any) -> str:
    with pytest.raises(UserError) as caught:
        build(recipe(**tables))
    return str(caught.value)


def test_an_unknown_logical_axis_names_the_parameter() -> None:
    message = refused(model={"axis": "embd"})
    assert message.startswith(
        "parameter hidden/kernel: its logical axis 'embd' has no rule (did you mean 'embed'?)"
    )
    assert '[shard] rules = {embd = "MESH AXIS"}' in message


def test_a_rule_for_a_mesh_axis_that_is_not_there_is_an_error() -> None:
    message = refused(shard={"rules": {"embed": "fdsp"}})
    assert (
        "[shard] rules: embed = 'fdsp': the mesh has no such axis (did you mean 'fsdp'?)" in message
    )


def test_a_mesh_axis_twice_in_a_rule_is_an_error() -> None:
    message = refused(shard={"rules": {"batch": ["data", "data"]}})
    assert "[shard] rules: batch = ['data', 'data'] names an axis twice" in message


def test_a_mesh_axis_that_no_rule_uses_is_an_error_with_its_place(user_file: Any) -> None:
    path = user_file("typo.toml", "[run]\n[shard]\nmesh = {data = 1, fdsp = 8}\n")
    with pytest.raises(UserError, match=r"\[shard\] mesh = .*typo\.toml:3.*did you mean 'fsdp'"):
        load_config(path)


@pytest.mark.eight_devices
@pytest.mark.parametrize(
    ("shard", "said"),
    [
        (
            {"mesh": {"data": 1, "fdsp": -1}},
            "no rule spreads anything over its axis 'fdsp' (did you mean 'fsdp'?)",
        ),
        ({"mesh": {"data": 1, "other": -1}, "rules": {"vocab": "other"}}, "by the rules of vocab"),
        ({"mesh": {"data": 1, "fsdp": -1}, "rules": {"batch": "", "embed": ""}}, "no rule at all"),
    ],
)
def test_devices_that_would_all_compute_the_same_are_an_error(shard: Any, said: str) -> None:
    assert said in refused(shard=shard)


@pytest.mark.eight_devices
def test_zero1_spreads_over_whatever_axes_spread_rows_alone() -> None:
    """A leaf of 16 has no room for 2 x 2 x 8 devices, and takes what divides it."""
    rules = {"batch": ["replica", "data", "fsdp"]}
    mesh = {"replica": 2, "data": 2, "fsdp": 2}
    program = on(mesh, optimizer_state="zero1", rules=rules).program
    assert program.run.axes.replica_axes(program.model.params) == ("replica", "data")
    state = program.shardings.state
    assert state.params["hidden"]["kernel"].spec == PartitionSpec("fsdp", None)
    trace = state.opt_state[0].trace
    assert trace["hidden"]["kernel"].spec == PartitionSpec("fsdp", ("replica", "data"))
    assert trace["gain"].spec == PartitionSpec(("replica", "data"))


@pytest.mark.eight_devices
def test_an_activation_is_pinned_by_the_names_of_its_axes() -> None:
    axes = on(MESHES["all three"]).program.run.axes

    def spec(shape: tuple[int, ...], *names: str | None) -> PartitionSpec:
        pinned = jax.jit(lambda x: axes.constrain(x, names))(np.zeros(shape, np.float32))
        return pinned.sharding.spec

    assert spec((8, 4, 6), "batch", "length", "mlp") == PartitionSpec(
        ("data", "fsdp"), None, "tensor"
    )
    # 6 rows are no 2 x 2: over `data` alone. `mlp` again finds its devices taken.
    assert spec((6, 4, 4), "batch", "mlp", "mlp") == PartitionSpec("data", "tensor")
    assert axes.activations["batch"] == {"data", "fsdp"}
    with pytest.raises(
        UserError,
        match=r"an activation: its logical axis 'lenght' has no rule \(did you mean 'length'\?\)",
    ):
        spec((8, 4), "batch", "lenght")


def test_a_shard_plugin_without_rules_leaves_every_name_whole() -> None:
    axes = build(recipe(shard={"use": "test_shard:Alone"})).program.run.axes
    assert axes.rules == {"batch": ("data",)}
    assert jax.jit(lambda x: axes.constrain(x, ("batch", "anything")))(np.zeros((2, 2))).shape


def test_a_mesh_axis_with_a_rule_of_its_own_is_accepted() -> None:
    table = {"mesh": {"expert": 4}, "rules": {"experts": "expert"}}
    assert load_config(recipe(shard=table)).table["shard"]["mesh"]["expert"] == 4


@pytest.mark.parametrize(
    ("mesh", "said"),
    [
        ({"fsdp": 3}, "needs a multiple of 3 devices, and there are 1 (cpu)"),
        ({"data": 1, "fsdp": 2}, "needs 2 devices, and there are 1 (cpu)"),
        ({"fsdp": -1}, "only one axis may be -1, not data and fsdp; give the others a size, such"),
        ({"fsdp": 0}, "each axis needs at least 1 device"),
    ],
)
def test_a_mesh_that_does_not_fit_the_devices_is_an_error(mesh: Any, said: str) -> None:
    message = refused(shard={"mesh": mesh})
    assert message.startswith("[shard] mesh = {data = ")
    assert said in message


@pytest.mark.eight_devices
def test_one_mesh_axis_for_two_axes_of_a_parameter_is_an_error() -> None:
    message = refused(shard={"mesh": {"data": 1, "fsdp": 8}, "rules": {"mlp": "fsdp"}})
    assert (
        "parameter hidden/kernel: its axes embed and mlp would both be spread over the mesh axis "
        "'fsdp'; change one of [shard] rules" in message
    )


@pytest.mark.eight_devices
def test_an_axis_that_its_devices_do_not_divide_is_an_error() -> None:
    message = refused(
        shard={"mesh": {"data": 1, "fsdp": 8}}, model={"inputs": 12}, data={"inputs": 12}
    )
    assert (
        "parameter hidden/kernel: its axis embed of 12 cannot be spread over 8 devices (fsdp); "
        "change [shard] mesh, make it 16 in the model, or keep it whole, with [shard] rules = "
        '{embed = ""} or, wherever devices do not divide, [shard] uneven = "replicate"' in message
    )


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"hiden/*": {"embed": ""}}, '[shard] overrides: "hiden/*" fits no parameter'),
        (
            {"hidden/*": {"embd": ""}},
            "no parameter that it fits has a logical axis 'embd' (did you mean 'embed'?); they "
            "have: embed, mlp",
        ),
        (
            {"*": {"embed": ""}, "hidden/kernel": {"embed": ""}},
            'parameter hidden/kernel: [shard] overrides "*" and "hidden/kernel" both fit it',
        ),
        ({"hidden/*": {"mlp": "tensr"}}, "mlp = 'tensr': the mesh has no such axis (did you mean"),
    ],
)
def test_overrides_that_fit_nothing_are_errors(overrides: Any, said: str) -> None:
    assert said in refused(shard={"overrides": overrides})


@pytest.mark.parametrize(
    ("dcn", "said"),
    [
        ({"dat": 1}, "dcn = {dat = 1}: the mesh has no axis 'dat' (did you mean 'data'?)"),
        ({"fsdp": 2}, "dcn = {fsdp = 2}: 2 must divide the 1 devices of its axis 'fsdp'"),
    ],
)
def test_slices_that_do_not_fit_the_mesh_are_errors(dcn: Any, said: str) -> None:
    assert said in refused(shard={"dcn": dcn})


@plugin
class Forgetful(Rules):
    """A shard plugin that forgot a leaf."""

    @hookimpl
    def shard(self, run: Any, model: Any, abstract_state: Any, derive: Any) -> Any:
        shardings = super().shard(run, model, abstract_state, derive)
        params = {**shardings.state.params, "gain": None}
        return attrs.evolve(shardings, state=attrs.evolve(shardings.state, params=params))


@plugin
class Alone:
    """A shard plugin that has no settings, and puts everything everywhere."""

    @hookimpl
    def shard(self, run: Any, model: Any, abstract_state: Any, derive: Any) -> Any:
        whole = NamedSharding(run.mesh, PartitionSpec())
        state = jax.tree.map(lambda leaf: whole, abstract_state)
        return Shardings(state, run.axes.batch_sharding(), whole)


@plugin
class Apart(Rules):
    """A shard plugin with a sharding of another kind."""

    @hookimpl
    def shard(self, run: Any, model: Any, abstract_state: Any, derive: Any) -> Any:
        shardings = super().shard(run, model, abstract_state, derive)
        alone = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        return attrs.evolve(shardings, state=attrs.evolve(shardings.state, step=alone))


def test_a_sharding_of_another_kind_is_named() -> None:
    said = "step has a SingleDeviceSharding, not a NamedSharding of run.mesh"
    assert said in refused(shard={"use": "test_shard:Apart"})


@pytest.mark.eight_devices
def test_rows_of_several_processes_must_lie_where_they_are_read() -> None:
    program = on(MESHES["data and fsdp"]).program
    turned = attrs.evolve(program.shardings, batch=program.shardings.replicated)
    check_shardings(program.run, program.abstract_state, turned)  # one process has all
    several = attrs.evolve(program.run, processes=2)
    with pytest.raises(UserError, match=r"batch is spread by P\(\), and its rows are read over"):
        check_shardings(several, program.abstract_state, turned)


def test_a_leaf_without_a_sharding_is_named() -> None:
    assert refused(shard={"use": "test_shard:Forgetful"}) == (
        "[shard]: what the hook `shard` returned does not fit the state:\n"
        "  params/gain has no sharding"
    )


@pytest.mark.eight_devices
def test_a_batch_that_its_devices_do_not_divide_is_an_error() -> None:
    message = refused(data={"batch_size": 12})
    assert "[data] batch_size = 12 must be divisible by the 8 devices" in message
    assert message.endswith("the next that fits is 16")
    message = refused(data={"batch_size": 16}, accumulate={"microbatches": 4})
    assert "microbatches = 4 x the 8 devices" in message
    assert message.endswith("the next that fits is 32")
