"""What XLA has to know of a GPU to compile for it where none is."""

from __future__ import annotations

from trainer_core.plan.chips import CHIPS, Chip

# Compute capability, multiprocessors, GHz, KiB of shared memory a multiprocessor, MiB of L2;
# from NVIDIA's architecture white papers (Ampere, Hopper) and, for B200, its tuning guide.
_BUILT: dict[str, tuple[tuple[int, int], int, float, int, int]] = {
    "a100": ((8, 0), 108, 1.41, 164, 40),
    "h100": ((9, 0), 132, 1.98, 228, 50),
    "h200": ((9, 0), 132, 1.98, 228, 50),
    "b200": ((10, 0), 148, 1.965, 228, 126),
}


def target_config(chip: Chip) -> str:
    """Return the `xla.gpu.GpuTargetConfigProto` of a GPU, as text."""
    name = next(name for name, each in CHIPS.items() if each is chip)
    (major, minor), cores, clock, shared, cache = _BUILT[name]
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {shared * 1024}
  threads_per_core_limit: 2048
  core_count: {cores}
  fpus_per_core: {64 if major == 8 else 128}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {int(chip.memory_bandwidth)}
  l2_cache_size: {cache * 2**20}
  clock_rate_ghz: {clock}
  device_memory_size: {int(chip.memory)}
  shared_memory_per_block_optin: {(shared - 1) * 1024}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 }}
runtime_version {{ major: 12 minor: 9 patch: 0 }}
device_description_str: "{chip.title}"
"""
