"""Muon's update of a large model, compiled for TPUs that are not there: collectives and memory.

The parameters of a preset, the update alone, float32. Needs libtpu, in an environment of its own:

    pip install "jax[tpu]" -e . -e plugins/trainer-muon-plugin
    python benchmarks/muon_topology.py v5e:8x8 --mesh 64x1 16x4
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ |= {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import jax
from jax.experimental import mesh_utils, topologies
from jax.sharding import AxisType, Mesh
from muon import OnMesh, optax_muon
from rich.console import Console
from rich.table import Table
from trainer_muon import muon

from trainer_core.decoder import DecoderConfig
from trainer_core.decoder_parameters import decoder_parameters
from trainer_core.plan.cost import cost_of

RATE = 1e-3


def optimizers(placement: Any) -> dict[str, Any]:
    return {
        "ours": lambda infos: muon(RATE, infos, placement=placement),
        "ours, bfloat16": lambda infos: muon(
            RATE, infos, placement=placement, iteration_dtype="bfloat16"
        ),
        "optax": optax_muon,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("topology")
    parser.add_argument("--mesh", nargs="+", default=["64x1"], help="fsdp x tensor")
    parser.add_argument("--preset", default="llama3-8b")
    parser.add_argument("--optax", action="store_true", help="compile optax's too: minutes")
    arguments = parser.parse_args()
    infos = {
        info.path: info
        for info in jax.tree.leaves(decoder_parameters(DecoderConfig(preset=arguments.preset)))
        if info.kind == "matrix"
    }
    topology = topologies.get_topology_desc(platform="tpu", topology_name=arguments.topology)
    table = Table(
        "update", "fsdp x tensor", "collectives", "GiB a device", "temporaries", "compile"
    )
    for text in arguments.mesh:
        sizes = (1, *map(int, text.split("x")))
        devices = mesh_utils.create_device_mesh(
            sizes, topology.devices, allow_split_physical_axes=True
        )
        mesh = Mesh(devices, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
        lowered_by = OnMesh(infos, mesh)
        for name, build in optimizers(lowered_by.placement).items():
            if name == "optax" and not arguments.optax:
                continue
            began = time.perf_counter()
            compiled = lowered_by(build(infos), lowering_platforms=("tpu",)).compile()
            seconds = time.perf_counter() - began
            cost = cost_of(compiled.as_text())
            temporaries = compiled.memory_analysis().temp_size_in_bytes / 2**30
            table.add_row(
                name,
                text,
                ", ".join(f"{count} {kind}" for kind, count in cost.collectives.items()),
                f"{cost.bytes / 2**30:.2f}",
                f"{temporaries:.2f} GiB",
                f"{seconds:.0f} s",
            )
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
