"""`trainer plan`: what it says of a step is what the step takes, and planning it takes nothing."""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import attrs
import jax
import jax.numpy as jnp
import programs
import pytest
from decoders import FRAMEWORKS, SMALL

from trainer_core.assemble import open_run
from trainer_core.config import load_config
from trainer_core.decoder import DecoderConfig
from trainer_core.plan.cost import Cost, Exchange, cost_of
from trainer_core.plan.estimate import Estimate
from trainer_core.plan.flops import forward_products, products_of
from trainer_core.plan.hlo import group_of
from trainer_core.plan.knobs import knobs
from trainer_core.plan.memory import memory_of
from trainer_core.plan.planning import Plan, plan_program, plan_step
from trainer_core.plan.search import dcn_for, search
from trainer_core.plan.variants import Variants
from trainer_core.plan.xla_memory import XlaMemory
from trainer_core.program import Program, build_program

pytest.importorskip("trainer_nnx")
pytest.importorskip("trainer_linen")

ALL_THREE = {"data": 2, "fsdp": 2, "tensor": 2}
LENGTH = 6  # of a sequence of decoders:Tokens


def decoder(**tables: Mapping[str, Any]) -> dict[str, Any]:
    own: dict[str, Mapping[str, Any]] = {
        "model": {**SMALL, "use": "nnx"},
        "data": {"use": "decoders:Tokens"},
        "optimizer": {"use": "adamw"},
    }
    return programs.recipe(
        **{name: {**own.get(name, {}), **tables.get(name, {})} for name in {**own, **tables}}
    )


def built(config: Mapping[str, Any]) -> Program:
    return programs.build(config).program


# ------------------------------------------------------------------ flops


def forward_by_hand(config: DecoderConfig, tokens: int) -> int:
    """The products of a forward pass: two operations for each weight and token, and attention."""
    head, width = config.head_dim, config.width
    projections = 2 * width * head * (2 * config.heads + 2 * config.kv_heads)
    attention = 2 * 2 * LENGTH * config.heads * head
    mlp = 2 * 3 * width * config.mlp
    return tokens * (config.layers * (projections + attention + mlp) + 2 * width * config.vocab)


@pytest.mark.parametrize(("framework", "scan"), [("nnx", True), ("linen", True), ("nnx", False)])
def test_flops_are_those_of_a_count_by_hand(framework: str, scan: bool) -> None:
    model = {**SMALL, "use": framework, "scan": scan}
    program = built(decoder(model=model, accumulate={"microbatches": 2}))
    expected = forward_by_hand(DecoderConfig(**{**SMALL, "scan": scan}), 8 * LENGTH)
    assert forward_products(program).total == expected
    # The pass over all microbatches that finds the weights is not executed, and not counted.
    assert products_of(program.trace_step().jaxpr).total == 3 * expected


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_what_is_computed_again_counts_in_the_step_and_not_for_the_model(framework: str) -> None:
    program = built(decoder(model={**SMALL, "use": framework, "remat": "full"}))
    config = DecoderConfig(**SMALL)
    expected = forward_by_hand(config, 8 * LENGTH)
    unembedding = 2 * 8 * LENGTH * config.width * config.vocab
    # The last product of a layer is not needed again: only its factors are.
    last = 2 * 8 * LENGTH * config.layers * config.mlp * config.width
    assert forward_products(program).total == expected
    found = products_of(program.trace_step().jaxpr)
    assert found.total == 3 * expected + expected - unembedding - last


def test_loops_count_as_often_as_they_run_and_once_where_xla_counts_so() -> None:
    def looped(x: jax.Array, kernel: jax.Array) -> jax.Array:
        x, _ = jax.lax.scan(lambda x, _: (x @ x, None), x, None, length=5)
        image = x[None, :, :, None]  # [1, 8, 8, 1], the channels second
        return jax.lax.conv(image, kernel, (1, 1), "SAME")  # [1, 3, 8, 1]

    found = products_of(jax.make_jaxpr(looped)(jnp.ones((8, 8)), jnp.ones((3, 8, 2, 1))))
    product, convolution = 2 * 8**3, 2 * (3 * 8) * (8 * 2)
    assert found.total == 5 * product + convolution
    assert found.in_loops_once == product + convolution


def test_a_loop_of_unknown_length_is_named() -> None:
    def until(x: jax.Array) -> jax.Array:
        return jax.lax.while_loop(lambda x: jnp.sum(x) < 10, lambda x: x @ x, x)

    assert products_of(jax.make_jaxpr(until)(jnp.ones((2, 2)))).unknown


# ------------------------------------------------------------------ memory


@functools.cache  # no fixture: those are set up where there is one device too
def on_eight() -> Plan:
    """A decoder on eight devices, in two microbatches, the optimizer's state spread further."""
    return plan_program(
        built(
            decoder(
                shard={"mesh": ALL_THREE, "optimizer_state": "zero1"},
                accumulate={"microbatches": 2},
            )
        )
    )


@pytest.mark.eight_devices
def test_the_state_takes_what_a_device_then_holds_of_it(quick_compiles: None) -> None:
    state = on_eight().program.initial_state()
    device = jax.devices()[0]
    held: Counter[str] = Counter()
    for name in ("params", "opt_state"):
        for leaf in jax.tree.leaves(getattr(state, name)):
            held[name] += sum(
                each.data.nbytes for each in leaf.addressable_shards if each.device == device
            )
    memory = on_eight().memory
    assert (memory.parameters, memory.optimizer) == (held["params"], held["opt_state"])


@pytest.mark.eight_devices
def test_the_classes_as_counted_are_what_xla_says(quick_compiles: None) -> None:
    memory, xla = on_eight().memory, on_eight().xla_memory
    assert xla is not None
    assert memory.total == pytest.approx(xla.total, rel=0.03)
    assert memory.arguments == xla.arguments
    assert memory.state == xla.aliased  # all of it is updated in place
    assert xla.outputs - xla.aliased < 1024  # the metrics
    assert 0 < memory.gradients == memory.parameters == memory.accumulator
    assert memory.activations > 0


def test_a_step_that_does_not_take_what_was_counted_shows(quick_compiles: None) -> None:
    program = built(programs.recipe())
    twice = jax.jit(program.step.apply).lower(program.abstract_state, program.abstract_batch)
    xla = XlaMemory.of(twice.compile(), "cpu")  # its old state is not given up
    assert xla is not None
    assert xla.total > 1.03 * memory_of(program, xla.passing).total


@pytest.mark.eight_devices
def test_the_compiled_step_computes_what_was_counted(quick_compiles: None) -> None:
    plan = on_eight()
    assert plan.cost is not None
    assert plan.cost.flops * 8 == plan.step.total
    assert not plan.cost.unknown


@pytest.mark.eight_devices
def test_collectives_in_a_loop_count_as_often_as_it_runs(quick_compiles: None) -> None:
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))

    def summed(x: jax.Array) -> jax.Array:
        def add(total: jax.Array, factor: jax.Array) -> tuple[jax.Array, None]:
            return total + jnp.sum(jnp.sin(factor * x), axis=0), None

        return jax.lax.scan(add, jnp.zeros((4,)), jnp.arange(3.0))[0]

    x = jax.ShapeDtypeStruct((16, 4), jnp.float32, sharding=rows)
    cost = cost_of(jax.jit(summed).lower(x).compile().as_text())
    assert cost.exchanges == (Exchange("all-reduce", tuple(range(8)), 16, 3),)
    assert cost.exchanges[0].sent == 3 * 16 * 2 * 7 / 8


def test_a_plan_compiles_the_step_once_and_allocates_nothing(
    quick_compiles: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = []
    lowered = jax.stages.Lowered.compile
    monkeypatch.setattr(
        jax.stages.Lowered,
        "compile",
        lambda self, *args, **options: compiled.append(1) or lowered(self, *args, **options),
    )
    before = {id(each) for each in jax.live_arrays()}
    plan = plan_step(load_config(programs.recipe()), jax.devices())
    assert len(compiled) == 1
    kept = [each for each in jax.live_arrays() if id(each) not in before]
    assert sum(each.nbytes for each in kept) < 100, kept  # a schedule's constants
    assert plan.program.param_count > 200


@pytest.mark.eight_devices
def test_seventy_billion_parameters_are_described_and_placed_within_five_seconds() -> None:
    tables = {
        "model": {"use": "nnx", "preset": "llama3-70b"},
        "data": {"use": "decoders:Tokens"},
        "shard": {"mesh": {"data": 1, "fsdp": 8, "tensor": 1}},
    }
    run, hooks = open_run(load_config(programs.recipe(**tables)))
    began = time.process_time()  # of this process alone, whatever else the machine does
    program = build_program(run, hooks)
    memory = memory_of(program)
    assert time.process_time() - began < 5
    assert program.param_count == 70_553_706_496
    norms = (2 * 80 + 1) * 8192  # whole on each device
    assert memory.parameters == 4 * (program.param_count - norms) // 8 + 4 * norms


# ------------------------------------------------------------------ estimates, knobs, search


@pytest.fixture(scope="module")
def variants() -> Variants:
    overrides = [
        *(f"model.{key}={value}" for key, value in {**SMALL, "layers": 6, "use": "nnx"}.items()),
        *("data.use=decoders:Tokens", "data.batch_size=64"),
        *("plugins.progress=false", "checkpoint.use=none"),
    ]
    return Variants(None, overrides, jax.devices()[:1])


@pytest.fixture(scope="module")
def planned(variants: Variants, quick_compiles: None) -> Plan:
    return variants.plan()


@pytest.mark.parametrize(
    "change",
    [
        "model.remat=full",
        pytest.param("accumulate.microbatches=4", marks=pytest.mark.long),
        pytest.param("data.batch_size=16", marks=pytest.mark.long),
    ],
)
def test_an_estimate_is_near_what_the_compiler_then_says(
    planned: Plan, variants: Variants, change: str
) -> None:
    estimated = Estimate.from_plan(planned.program, planned.memory).memory(variants.build(change))
    compiled = variants.plan(change).memory
    assert estimated.arguments == compiled.arguments
    # How much workspace XLA shares between layers is its own affair; what they keep is not.
    assert estimated.total == pytest.approx(compiled.total, rel=0.2)
    assert compiled.total < 0.6 * planned.memory.total


def test_where_it_does_not_fit_the_cheapest_knobs_are_named_with_what_each_saves(
    planned: Plan, variants: Variants
) -> None:
    tight = attrs.evolve(planned, available=0.5 * planned.memory.total)
    assert tight.fits is False
    found = knobs(tight, variants)
    assert [each.changes for each in found] == [
        ("accumulate.microbatches=2",),
        ("model.remat=dots",),
        ("model.remat=full",),
    ]
    assert all(each.saved == planned.memory.total - each.memory.total > 0 for each in found)
    assert found[-1].memory.total <= tight.available


def test_where_no_knob_is_enough_several_are_named_together(
    planned: Plan, variants: Variants
) -> None:
    estimate = Estimate.from_plan(planned.program, planned.memory)
    least = estimate.memory(variants.build("accumulate.microbatches=64"))
    tight = attrs.evolve(planned, available=least.total - 1.0)
    *alone, together = knobs(tight, variants)
    assert len(alone) == 3
    assert len(together.changes) > 1
    assert len({each.partition("=")[0] for each in together.changes}) == len(together.changes)
    assert together.memory.total <= tight.available


@pytest.mark.eight_devices
def test_a_search_tries_every_mesh_that_divides_and_says_what_it_left_out(
    quick_compiles: None,
) -> None:
    overrides = ["model.use=models:Perceptron", "data.use=models:Examples", "model.inputs=6"]
    overrides += ["data.inputs=6", "checkpoint.use=none", "plugins.progress=false"]
    variants = Variants(None, overrides, jax.devices()[:4])
    plan = variants.plan()
    found = search(plan, variants, 60)
    meshes = [each.plan.mesh for each in found.ranked]
    assert {tuple(mesh.values()) for mesh in meshes} == {
        (4, 1, 1), (2, 2, 1), (2, 1, 2), (1, 2, 2), (1, 1, 4),
    }  # fmt: skip
    assert found.ranked[0].plan.memory.total == min(e.plan.memory.total for e in found.ranked)
    assert found.skipped == {"the model or the batch does not divide so": 1}  # 6 over 4
    assert search(plan, variants, 0).skipped == {"no time was left": 5}


@pytest.mark.parametrize(
    ("sizes", "dcn", "setting"),
    [
        ({"data": 4, "fsdp": 2}, {"data": 2}, ""),
        ({"data": 4, "fsdp": 2}, {}, ""),
        ({"data": 1, "fsdp": 8}, {"data": 2}, "shard.dcn={data = 1, fsdp = 2}"),
        ({"data": 3, "fsdp": 3}, {"data": 2}, ""),
    ],
)
def test_in_a_search_the_axis_that_crosses_slices_follows_the_mesh(
    sizes: dict[str, int], dcn: dict[str, int], setting: str
) -> None:
    assert dcn_for(sizes, dcn) == setting


@pytest.mark.eight_devices
def test_a_search_says_where_the_slices_do_not_fit(quick_compiles: None) -> None:
    """Of one process on CPUs, no axis can cross two."""
    overrides = ["model.use=models:Perceptron", "data.use=models:Examples", "checkpoint.use=none"]
    plan = Variants(None, overrides, jax.devices()[:2]).plan()
    across = Variants(None, [*overrides, "shard.dcn={data=2}"], jax.devices()[:2])
    assert search(plan, across, 60).skipped == {"[shard] dcn does not fit such a mesh": 2}


@pytest.mark.parametrize(
    ("written", "group"),
    [
        ("{{0,2},{1,3}}", (0, 2)),
        ("[4,2]<=[8]", (0, 1)),
        ("[2,4]<=[4,2]T(1,0)", (0, 2, 4, 6)),
        ("mesh['a'=2,'b'=4] {'b'}", (0, 1, 2, 3)),
        ("mesh['a'=2,'b'=4] {'a'}", (0, 4)),
        ("mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}", (0, 1, 2, 3)),
        ("mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}", (0, 4)),
        ("{}", tuple(range(8))),
    ],
)
def test_the_devices_of_a_collective_are_read_however_they_are_written(
    written: str, group: tuple[int, ...]
) -> None:
    assert group_of(f"channel_id=1, replica_groups={written}, dimensions={{0}}", 8) == group


# ------------------------------------------------------------------ programs of other compilers

TPU = """HloModule jit_step, num_partitions=4

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %a = f32[8]{0} fusion(%x), kind=kCustom, calls=%outer
  %b = f32[8]{0} fusion(%a), kind=kCustom, calls=%end
  %c = f32[4]{0} fusion(%b), kind=kCustom, calls=%all-reduce-scatter.1
  %one = s32[]{:T(128)} constant(1)
  %j = s32[]{:T(128)} get-tuple-element(%p), index=0
  %k = s32[]{:T(128)} add(%j, %one)
  %m = s32[]{:T(128)} add(%one, %k)
  %s = (f32[4]{0}, f32[4]{0}, u32[]{:S(2)}) collective-permute-start(%x), channel_id=5, source_target_pairs={{0,1},{1,0}}
  %d = f32[8]{0:T(8)S(1)} all-reduce(%b), channel_id=4, replica_groups=mesh['a'=2,'b'=2] {'b'}
  %token = token[] after-all(), frontend_attributes={MegascaleRendezvousKeyName="all-reduce.18_0"}
  %send = (f32[4]{0:T(128)}, u32[], token[]) send(%c, %token), channel_id=3, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_host_transfer_rendezvous="all-reduce.18_0",_xla_megascale_reduce_operation="SUM",_xla_megascale_target="{1,2,3}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %recv = (f32[4]{0:T(128)}, u32[], token[]) recv(%token), channel_id=2, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_host_transfer_rendezvous="all-reduce.18_0",_xla_megascale_reduce_operation="SUM",_xla_megascale_target="{1,2,3}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %recv.1 = (f32[2,8]{1,0:T(8,128)}, u32[], token[]) recv(%token), channel_id=9, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_host_transfer_rendezvous="all-gather.4_0",_xla_megascale_target={{100000,200000},{100001,200001}},_xla_megascale_transfer_type="ALL_GATHER"}
  %recv-done = (f32[4]{0:T(128)}, token[]) recv-done(%recv), channel_id=2, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime"}
  ROOT %z = (s32[], f32[8]) tuple(%m, %d)
}

%outer (x: f32[4]) -> f32[8] {
  ROOT %o = f32[8]{0} fusion(%x), kind=kCustom, calls=%begin
}

%begin (x: f32[4]) -> f32[8] {
  %g = f32[8]{0} all-gather(%x), channel_id=7, replica_groups=[2,2]<=[2,2]T(1,0), frontend_attributes={chain_id="3"}
  ROOT %k = (f32[8]{0}, u32[]{:S(2)}) custom-call(%g), custom_call_target="AsyncCollectiveStart"
}

%end (x: f32[4]) -> f32[8] {
  ROOT %h = f32[8]{0} all-gather(%x), channel_id=7, replica_groups=[2,2]<=[2,2]T(1,0), frontend_attributes={chain_id="3"}
}

%all-reduce-scatter.1 (x: f32[8]) -> f32[4] {
  %r = bf16[8]{0} all-reduce(%x), channel_id=1, replica_groups={{0,2},{1,3}}, to_apply=%add
}

%condition (p: (s32[], f32[8])) -> pred[] {
  %n = s32[]{:T(128)} constant(7)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %n), direction=LT
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %zero = s32[]{:T(128)} constant(2)
  %t = (s32[], f32[8]) tuple(%zero, %x)
  %w = (s32[], f32[8]) while(%t), condition=%condition, body=%body
}
"""  # noqa: E501


def test_a_tpus_program_is_read_too_whose_loops_and_pieces_say_less() -> None:
    cost = cost_of(TPU)
    assert set(cost.exchanges) == {
        Exchange("all-gather", (0, 2), 32, 3),
        Exchange("reduce-scatter", (0, 2), 8, 3),
        Exchange("all-reduce", (0, 1), 32, 3),
        Exchange("collective-permute", (0, 1), 16, 3, links=((0, 1), (1, 0))),
        Exchange("all-reduce", (1, 2, 3), 16, 3, between_slices=True),
        Exchange("all-gather", (100000, 200000), 64, 3, between_slices=True),
    }
    assert {kind: sums.count for kind, sums in cost.by_kind.items() if "slices" in kind} == {
        "all-reduce between slices": 3,
        "all-gather between slices": 3,
    }
    assert not cost.unknown


def test_a_loop_whose_length_cannot_be_read_counts_once_and_is_named() -> None:
    cost = cost_of(TPU.replace("direction=LT", "direction=GT"))
    assert set(cost.collectives.values()) == {1}
    assert cost.unknown
    assert Cost().bytes == 0
