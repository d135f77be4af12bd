"""What a step of Muon costs, beside optax's Muon and AdamW.

The parameters of 12 layers of width 512, layers stacked and one by one, a whole optimizer step
(update and apply), in CPU-seconds of all threads, interleaved, medians; then the compiled
programs: products, temporaries, compile time; and on eight simulated devices, in a process of
its own: collectives, their bytes and the flops of one device.

    uv run python benchmarks/muon.py [--rounds 5] [--only NAME ...]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from rich.console import Console
from rich.table import Table
from trainer_muon import muon, placement_of

from trainer_core.axes import AxisRules
from trainer_core.decoder import DecoderConfig
from trainer_core.decoder_parameters import decoder_parameters
from trainer_core.defaults.shard import DEFAULT_RULES

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

CONFIG = DecoderConfig(
    layers=12, width=512, heads=8, kv_heads=8, head_dim=64, mlp=2048, vocab=8192, qk_norm=False
)
RATE = 1e-3


@attrs.frozen
class Variant:
    """An optimizer for one form of the layers."""

    name: str
    stacked: bool
    build: Callable[[Any], optax.GradientTransformation]


def optax_muon(infos: Any) -> optax.GradientTransformation:
    """Optax's, told by hand what our infos say: which axes are summed over and produced."""

    def numbers(info: Any) -> Any:
        if info.kind != "matrix":
            return None
        axes = {
            role: tuple(at for at, axis in enumerate(info.axes) if axis.role == role)
            for role in ("in", "out")
        }
        return optax.contrib.MuonDimensionNumbers(axes["in"], axes["out"])

    return optax.contrib.muon(
        RATE,
        consistent_rms=0.2,
        weight_decay=0.1,
        muon_weight_dimension_numbers=jax.tree.map(numbers, infos),
    )


VARIANTS = [
    Variant(f"{name}, {'stacked' if stacked else 'one by one'}", stacked, build)
    for stacked in (True, False)
    for name, build in {
        "adamw": lambda infos: optax.adamw(RATE),
        f"optax {optax.__version__}": optax_muon,
        "ours": lambda infos: muon(RATE, infos),
        "ours, no Gram": lambda infos: muon(RATE, infos, gram=False),
        "ours, bfloat16": lambda infos: muon(RATE, infos, iteration_dtype="bfloat16"),
        "ours, NorMuon": lambda infos: muon(RATE, infos, normuon=True),
    }.items()
]


class Measured:
    """A compiled optimizer step with its arrays, and the CPU-seconds of each call."""

    def __init__(self, variant: Variant) -> None:
        infos = decoder_parameters(attrs.evolve(CONFIG, scan=variant.stacked))
        optimizer = variant.build(infos)
        random = np.random.default_rng(0)
        self.grads = jax.tree.map(
            lambda info: random.standard_normal(info.shape, np.float32), infos
        )
        self.params = jax.tree.map(lambda info: np.zeros(info.shape, np.float32), infos)
        self.state = jax.jit(optimizer.init)(self.params)

        def step(params: Any, state: Any, grads: Any) -> Any:
            updates, state = optimizer.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        lowered = jax.jit(step, donate_argnums=(0, 1)).lower(self.params, self.state, self.grads)
        self.dots = lowered.as_text().count("dot_general")
        began = time.perf_counter()
        self.step = lowered.compile()
        self.compile_seconds = time.perf_counter() - began
        self.temporaries = self.step.memory_analysis().temp_size_in_bytes / 2**20
        self.seconds: list[float] = []

    def call(self) -> None:
        began = time.process_time()
        self.params, self.state = self.step(self.params, self.state, self.grads)
        jax.block_until_ready(self.params)
        self.seconds.append(time.process_time() - began)


def on_one_device(rounds: int, only: list[str]) -> None:
    variants = [each for each in VARIANTS if not only or each.name.split(",")[0] in only]
    measured = {variant.name: Measured(variant) for variant in variants}
    for turn in range(rounds + 1):
        names = list(measured)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            measured[name].call()
    table = Table("step", "CPU-s", "beside optax", "products", "temporaries, MiB", "compile, s")
    for variant in variants:
        each = measured[variant.name]
        oracle = next(
            measured[other.name]
            for other in variants
            if other.stacked == variant.stacked and other.name.startswith("optax")
        )
        ratios = [a / b for a, b in zip(each.seconds[1:], oracle.seconds[1:], strict=True)]
        table.add_row(
            variant.name,
            f"{statistics.median(each.seconds[1:]):.2f}",
            f"{statistics.median(ratios):.3f}",
            str(each.dots),
            f"{each.temporaries:.0f}",
            f"{each.compile_seconds:.1f}",
        )
    Console(width=100).print(table)


def on_eight_devices() -> None:
    from trainer_core.mesh import make_mesh
    from trainer_core.plan.cost import cost_of

    table = Table("update", "mesh", "all-to-all", "others", "MiB a device", "Gflop a device")
    infos = {
        info.path: info
        for info in jax.tree.leaves(decoder_parameters(CONFIG))
        if info.kind == "matrix"
    }
    for sizes in ({"data": 1, "fsdp": 8, "tensor": 1}, {"data": 1, "fsdp": 4, "tensor": 2}):
        lowered = OnMesh(infos, make_mesh(sizes, jax.devices()))
        optimizers = {
            f"optax {optax.__version__}": optax_muon(infos),
            "ours": muon(RATE, infos, placement=lowered.placement),
            "ours, no Gram": muon(RATE, infos, placement=lowered.placement, gram=False),
        }
        for name, optimizer in optimizers.items():
            cost = cost_of(lowered(optimizer).compile().as_text())
            others = sum(cost.collectives.values()) - cost.collectives["all-to-all"]
            table.add_row(
                name,
                " x ".join(f"{axis} {size}" for axis, size in sizes.items() if size > 1),
                str(cost.collectives["all-to-all"]),
                str(others),
                f"{cost.bytes / 2**20:.0f}",
                f"{cost.flops / 1e9:.1f}",
            )
    Console(width=100).print(table)


class OnMesh:
    """Lower an optimizer's update for parameters that lie on a mesh by the default rules."""

    def __init__(self, infos: dict[str, Any], mesh: Mesh) -> None:
        self.whole = NamedSharding(mesh, PartitionSpec())
        self.lies = jax.tree.map(AxisRules(mesh, DEFAULT_RULES).param_sharding, infos)
        self.params = jax.tree.map(
            lambda info, where: jax.ShapeDtypeStruct(info.shape, info.dtype, sharding=where),
            infos,
            self.lies,
        )
        self.placement = placement_of(self.params)

    def __call__(self, optimizer: optax.GradientTransformation, **options: Any) -> Any:
        made = jax.eval_shape(optimizer.init, self.params)
        state = jax.tree_util.tree_map_with_path(self._placed, made)
        outs = (self.lies, jax.tree.map(lambda leaf: leaf.sharding, state))
        traced = jax.jit(optimizer.update, out_shardings=outs).trace(
            self.params, state, self.params
        )
        return traced.lower(**options)

    def _placed(self, where: Any, leaf: Any) -> jax.ShapeDtypeStruct:
        """The state of a parameter lies as that does."""
        keys = [entry.key for entry in where if hasattr(entry, "key")]
        known = (self.lies[key] for key in keys if key in self.lies)
        sharding = next(known, self.whole) if leaf.ndim else self.whole
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=[], help="names without 'stacked'")
    parser.add_argument("--devices", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.devices:
        on_eight_devices()
        return
    on_one_device(arguments.rounds, arguments.only)
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    subprocess.run(
        [sys.executable, __file__, "--devices"], env=os.environ | {"XLA_FLAGS": flags}, check=True
    )


if __name__ == "__main__":
    main()
