"""What each kind of accelerator can do, as its maker publishes it. Nothing here imports jax."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

_GIB = 2**30


@attrs.frozen(kw_only=True)
class Chip:
    """One kind of device, as JAX counts devices: of a TPU7x chip, JAX sees two.

    Attributes:
        title: its full name.
        kinds: how `jax.Device.device_kind` begins on it.
        memory: bytes of HBM that a program may use; of a TPU, as its compiler (libtpu 0.0.42)
            says it: a little less, or more, than the round number of the data sheet.
        flops: dense products of bfloat16, operations a second.
        flops_float32: the same of float32 as JAX multiplies by default: on a TPU in one pass of
            bfloat16, on these GPUs as TF32.
        memory_bandwidth: bytes a second from and to HBM.
        links: bytes a second that a device sends to others of its slice, or of its host's NVLink,
            over all links together, one way.
        network: bytes a second that a device sends beyond these; None where no source says it.
        shape: dimensions of a TPU slice; 0 for a GPU.
        pod: chips in the largest slice; for a GPU, devices in a host.
        per_chip: devices a chip.
        source: where the figures are from.
    """

    title: str
    kinds: tuple[str, ...]
    memory: float
    flops: float
    flops_float32: float
    memory_bandwidth: float
    links: float
    network: float | None
    shape: int
    pod: int
    per_chip: int = 1
    source: str


def _tpu(
    title: str,
    kinds: tuple[str, ...],
    *,
    hbm: float,
    teraflops: float,
    gigabytes: float,
    ici: float,
    dcn: float | None,
    shape: int,
    pod: int,
    source: str,
    per_chip: int = 1,
) -> Chip:
    """Return a TPU from the units of Google's tables, all of them a chip.

    Args:
        hbm: GiB that a program may use.
        ici: GB a second both ways together.
        dcn: Gbit a second; None where the tables do not say it.
    """
    return Chip(
        title=title,
        kinds=kinds,
        memory=hbm * _GIB / per_chip,
        flops=teraflops * 1e12 / per_chip,
        flops_float32=teraflops * 1e12 / per_chip,
        memory_bandwidth=gigabytes * 1e9 / per_chip,
        links=ici * 1e9 / 2 / per_chip,
        network=dcn * 1e9 / 8 / per_chip if dcn else None,
        shape=shape,
        pod=pod,
        per_chip=per_chip,
        source=source,
    )


def _gpu(
    title: str,
    kind: str,
    *,
    gigabytes: float,
    teraflops: float,
    terabytes: float,
    nvlink: float,
    network: float,
    source: str,
) -> Chip:
    """Return a GPU of a DGX or HGX host, from the units of NVIDIA's data sheets.

    Args:
        kind: by which the driver calls it; the variants with PCIe are slower.
        gigabytes: of memory, 10^9 bytes.
        teraflops: bfloat16 without sparsity; TF32 is half of it.
        nvlink: GB a second both ways together.
        network: Gbit a second for each GPU of a host.
    """
    return Chip(
        title=title,
        kinds=(kind, title),
        memory=gigabytes * 1e9,
        flops=teraflops * 1e12,
        flops_float32=teraflops * 1e12 / 2,
        memory_bandwidth=terabytes * 1e12,
        links=nvlink * 1e9 / 2,
        network=network * 1e9 / 8,
        shape=0,
        pod=8,
        source=source,
    )


_TPU_DOCS = "cloud.google.com/tpu/docs"

CHIPS: Mapping[str, Chip] = {
    "v4": _tpu(
        "TPU v4",
        ("TPU v4",),
        hbm=30.75,
        teraflops=275,
        gigabytes=1200,
        ici=540,
        dcn=None,
        shape=3,
        pod=4096,
        source=f"{_TPU_DOCS}/v4; links: jax-ml.github.io/scaling-book/tpus (6 x 45 GB/s one way)",
    ),
    "v5e": _tpu(
        "TPU v5e",
        ("TPU v5 lite", "TPU v5e"),
        hbm=15.75,
        teraflops=197,
        gigabytes=819,
        ici=400,
        dcn=25,
        shape=2,
        pod=256,
        source=f"{_TPU_DOCS}/v5e",
    ),
    "v5p": _tpu(
        "TPU v5p",
        ("TPU v5p", "TPU v5"),
        hbm=95.74,
        teraflops=459,
        gigabytes=2765,
        ici=1200,
        dcn=50,
        shape=3,
        pod=8960,
        source=f"{_TPU_DOCS}/v5p-training",
    ),
    "v6e": _tpu(
        "TPU v6e",
        ("TPU v6 lite", "TPU v6e"),
        hbm=31.25,
        teraflops=918,
        gigabytes=1638,
        ici=800,
        dcn=100,
        shape=2,
        pod=256,
        source=f"{_TPU_DOCS}/tpu7x, which compares the three",
    ),
    "tpu7x": _tpu(
        "TPU7x (Ironwood)",
        ("TPU7x",),
        hbm=189.5,
        teraflops=2307,
        gigabytes=7380,
        ici=1200,
        dcn=100,
        shape=3,
        pod=9216,
        per_chip=2,
        source=f"{_TPU_DOCS}/tpu7x",
    ),
    "a100": _gpu(
        "NVIDIA A100 SXM 80 GB",
        "NVIDIA A100-SXM4-80GB",
        gigabytes=80,
        teraflops=312,
        terabytes=2.039,
        nvlink=600,
        network=200,
        source="nvidia.com/en-us/data-center/a100; network: DGX A100 data sheet",
    ),
    "h100": _gpu(
        "NVIDIA H100 SXM 80 GB",
        "NVIDIA H100 80GB HBM3",
        gigabytes=80,
        teraflops=989.4,
        terabytes=3.35,
        nvlink=900,
        network=400,
        source="nvidia.com/en-us/data-center/h100; network: DGX H100 data sheet",
    ),
    "h200": _gpu(
        "NVIDIA H200 SXM 141 GB",
        "NVIDIA H200",
        gigabytes=141,
        teraflops=989.4,
        terabytes=4.8,
        nvlink=900,
        network=400,
        source="nvidia.com/en-us/data-center/h200; network: DGX H200 data sheet",
    ),
    "b200": _gpu(
        "NVIDIA B200 SXM 180 GB",
        "NVIDIA B200",
        gigabytes=180,
        teraflops=2250,
        terabytes=8,
        nvlink=1800,
        network=400,
        source="DGX B200 data sheet: an eighth of a host",
    ),
}


def chip_of(kind: str) -> Chip | None:
    """Return the chip of a `jax.Device.device_kind`; None where it is not in the table."""
    # The longest first: "TPU v5 lite" also begins with "TPU v5".
    known = sorted(
        ((start, chip) for chip in CHIPS.values() for start in chip.kinds),
        key=lambda each: -len(each[0]),
    )
    return next((chip for start, chip in known if kind.startswith(start)), None)
