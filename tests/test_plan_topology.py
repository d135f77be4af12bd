"""`--topology` and the table of chips."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

import attrs
import numpy as np
import pytest

from trainer_core import UserError
from trainer_core.plan.chips import CHIPS, Chip, chip_of
from trainer_core.plan.cost import Cost, Exchange
from trainer_core.plan.devices import devices_of, prepare
from trainer_core.plan.flops import Products
from trainer_core.plan.gpus import target_config
from trainer_core.plan.memory import Memory
from trainer_core.plan.roofline import Roofline, roofline_of, sent_beyond
from trainer_core.plan.topology import parse_topology


@pytest.mark.parametrize(
    ("text", "platform", "count"),
    [
        *(("v5e:4x4", "tpu", 16), ("v5e:8x4", "tpu", 32), ("v5p:8x8x16", "tpu", 1024)),
        *(("v4:2x2x1", "tpu", 4), ("tpu7x:4x4x4", "tpu", 128)),
        *(("2xv5e:4x4", "tpu", 32), ("16xtpu7x:2x2x1", "tpu", 128)),
        *(("gpu:h100x16", "gpu", 16), ("gpu:b200", "gpu", 1), ("cpu:256", "cpu", 256)),
    ],
)
def test_a_topology_names_its_devices(text: str, platform: str, count: int) -> None:
    found = parse_topology(text)
    assert (found.platform, found.count) == (platform, count)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("v5ee:4x4", r"there is no chip 'v5ee' \(did you mean 'v5e'\?\); there are v4, v5e"),
        ("h100", r"no chip 'h100' \(did you mean 'gpu:h100x8'\?\)"),
        ("v5e", r"it needs a shape, such as v5e:4x4"),
        ("2xv5e", r"it needs a shape, such as v5e:4x4"),
        ("0xv5e:4x4", r"it needs at least one slice, such as 2xv5e:4x4"),
        ("2xgpu:h100x8", r"only TPUs come in slices, such as 2xv5e:4x4"),
        ("2xv5:4x4", r"--topology 2xv5:4x4: there is no chip 'v5' \(did you mean"),
        ("v5p:", r"it needs a shape, such as 4x4x4"),
        ("v5e:3x5", r"no such slice of TPU v5e \(did you mean 4x4\?\); there are 1x1, 2x2, 2x4"),
        ("v5e:32x32", r"no such slice of TPU v5e \(did you mean 16x16\?\)"),
        ("v5p:8x8", r"no such slice of TPU v5p \(did you mean 4x4x4\?\); .* up to 8,960 chips"),
        ("gpu:h10x8", r"there is no GPU 'h10' \(did you mean 'h100'\?\)"),
        ("gpu:h100x12", r"a multiple of 8 \(did you mean gpu:h100x16\?\)"),
        ("cpu:none", r"it needs a number of devices, such as cpu:8"),
        ("cpu:4097", r"--topology cpu:4097: each device is simulated .* at most cpu:4096"),
    ],
)
def test_one_that_does_not_exist_is_an_error_that_names_those_that_do(text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse_topology(text)


@pytest.mark.parametrize(
    ("text", "command"),
    [("v5e:4x4", r"pip install 'trainer-core\[plan-tpu\]'"), ("gpu:a100x8", r"'jax\[cuda12\]'")],
)
def test_without_its_compiler_the_error_says_what_to_install(
    text: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=command):
        prepare(parse_topology(text))


def test_more_cpu_devices_than_a_running_jax_has_are_an_error_that_says_how() -> None:
    with pytest.raises(UserError, match=r"xla_force_host_platform_device_count=4096"):
        devices_of(parse_topology("cpu:4096"))


def test_every_chip_names_its_source_and_is_known_by_its_kind() -> None:
    for name, chip in CHIPS.items():
        assert ".com" in chip.source or "data sheet" in chip.source, name
        assert all(chip_of(kind) is chip for kind in chip.kinds), name
    assert chip_of("TPU v5 lite") is CHIPS["v5e"]
    assert chip_of("NVIDIA H100 80GB HBM3") is CHIPS["h100"]
    assert chip_of("cpu") is None


def test_every_gpu_is_described_to_its_compiler() -> None:
    for chip in CHIPS.values():
        if not chip.shape:
            assert f'description_str: "{chip.title}"' in target_config(chip)


def test_the_bound_is_the_slowest_part_by_hand() -> None:
    chip = CHIPS["v5e"]  # 197 TFLOP/s, 819 GB/s, 200 GB/s one way
    memory = Memory(
        parameters=300, buffers=50, optimizer=600, step=50, batch=10,
        accumulator=0, gradients=300, activations=700,
    )  # fmt: skip
    cost = Cost((Exchange("all-gather", (0, 1, 2, 3), 4000, 2),))
    step = Products()
    step.by_dtype["bfloat16"] = 8 * 197
    found = roofline_of(chip, 4, step, 6 * 197, memory, cost)
    assert found.network == 0
    assert found.compute == pytest.approx(2e-12)
    # 1010 read, 1000 written; 1000 written and read; 8000 written and read.
    assert found.memory == pytest.approx((1010 + 1000 + 2 * 1000 + 2 * 8000) / 819e9)
    assert found.interconnect == pytest.approx(8000 * 3 / 4 / 200e9)
    assert (found.limit, found.seconds) == ("interconnect", found.interconnect)
    assert found.mfu == pytest.approx(6 * 197 / (4 * 197e12 * found.seconds))


def test_a_group_of_gpus_that_leaves_its_host_is_bound_by_the_network() -> None:
    chip = CHIPS["h100"]  # 450 GB/s within a host of 8, 50 GB/s beyond
    near = bound_of(chip, Exchange("all-reduce", (0, 1), 1000))
    assert (near.interconnect, near.network) == (pytest.approx(1000 / 450e9), 0)
    far = bound_of(chip, Exchange("all-reduce", (0, 8), 1000))
    assert (far.interconnect, far.network) == (0, pytest.approx(1000 / 50e9))


@pytest.mark.parametrize(
    ("kind", "group", "sent", "beyond"),
    [
        # Of 1600 bytes, 100 on each of 16 devices; eight cards a host send at the same time.
        ("all-reduce", range(16), 2 * 1600 * 15 / 16, 2 * 1600 / 2 / 8),
        ("all-gather", range(16), 1600 * 15 / 16, 1600 / 2 / 8),
        ("collective-broadcast", range(16), 1600 * 15 / 16, 1600 / 2 / 8),
        ("all-to-all", range(16), 1600 * 15 / 16, 1600 / 2),
        ("reduce-scatter", range(16), 1600 * 15, 1600 * 16 / 2 / 8),
        ("all-reduce", (0, 8), 1600, 1600),
        ("all-gather", (0, 8, 16, 24), 1200, 1200),
        ("all-to-all", (0, 8), 800, 800),
        ("all-reduce", (0, 1, 8, 9, 16, 17, 24, 25), 2 * 1600 * 7 / 8, 2 * 1600 * 3 / 4 / 2),
        # Four on one host, eight on the other: twelve cards for what two hosts send.
        ("all-reduce", (4, *range(5, 16)), 2 * 1600 * 11 / 12, 2 * 1600 / 12),
        ("all-to-all", (0, 1, 8), 1600 * 2 / 3, 1600 * 4 / 9),
        ("all-gather", range(8), 1400, 0),
    ],
)
def test_a_card_sends_no_more_than_its_share_of_what_leaves_its_host(
    kind: str, group: Sequence[int], sent: float, beyond: float
) -> None:
    chip = CHIPS["h100"]
    exchange = Exchange(kind, tuple(group), 1600)
    bound = bound_of(chip, exchange)
    assert exchange.sent == pytest.approx(sent)
    assert bound.network == pytest.approx(beyond / 50e9)
    assert bound.interconnect == pytest.approx((sent - beyond) / 450e9)
    assert bound.seconds <= sent / 50e9 * (1 + 1e-9)  # as if each sent by its own card alone


def test_what_is_passed_on_leaves_by_all_cards_of_a_host() -> None:
    ring = tuple((device, (device + 1) % 16) for device in range(16))  # one leaves each host
    across = tuple((device, (device + 8) % 16) for device in range(16))
    for links, beyond in ((ring, 1600 / 8), (across, 1600), (ring[:7], 0)):
        bound = bound_of(CHIPS["h100"], Exchange("collective-permute", (0, 1), 1600, links=links))
        assert bound.network == pytest.approx(beyond / 50e9)
        assert bound.interconnect == pytest.approx((1600 - beyond) / 450e9)


@pytest.mark.parametrize("kind", ["all-reduce", "all-gather", "reduce-scatter", "all-to-all"])
def test_no_way_to_share_devices_out_sends_more_than_all_that_is_sent(kind: str) -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        group = tuple(map(int, random.choice(64, random.integers(2, 64), replace=False)))
        exchange = Exchange(kind, group, 1600)
        assert 0 <= sent_beyond(CHIPS["h100"], 64, exchange) <= exchange.sent * (1 + 1e-9)


@pytest.mark.parametrize(
    ("group", "beyond"),
    [((1, 2, 3), 4 / 3), ((100000, 200000), 1), ((100000, 100001, 200000, 200001), 1 / 2)],
)
def test_slices_are_counted_by_the_number_of_their_devices(
    group: tuple[int, ...], beyond: float
) -> None:
    exchange = Exchange("all-reduce", group, 10**6, between_slices=True)
    assert sent_beyond(CHIPS["v5e"], 512, exchange) == pytest.approx(beyond * 10**6)


def test_what_goes_between_slices_is_bound_by_the_network_where_its_speed_is_known() -> None:
    between = Exchange("all-reduce", (1, 2), 10**6, between_slices=True)
    bound = bound_of(CHIPS["v5e"], between)
    assert bound.network == bound.seconds == pytest.approx(10**6 / (25e9 / 8))  # 25 Gbit/s a chip
    assert (bound.interconnect, bound.limit) == (0, "network")
    unknown = bound_of(CHIPS["v4"], between)
    assert (unknown.network, unknown.limit) == (None, "HBM")


def bound_of(chip: Chip, exchange: Exchange) -> Roofline:
    memory = Memory(**dict.fromkeys((each.name for each in attrs.fields(Memory)), 0))
    return roofline_of(chip, 16, Products(), 0, memory, Cost((exchange,)))
