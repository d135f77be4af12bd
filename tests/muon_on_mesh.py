"""Muon's update for the parameters of a decoder that lie on a mesh, compiled and called."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from trainer_core.axes import AxisRules
from trainer_core.decoder import DecoderConfig
from trainer_core.decoder_parameters import decoder_parameters
from trainer_core.defaults.shard import DEFAULT_RULES
from trainer_core.mesh import make_mesh
from trainer_core.plan.cost import Cost, cost_of

MESHES = {
    "fsdp": {"fsdp": 8},
    "fsdp and tensor": {"fsdp": 4, "tensor": 2},
    "all three": {"data": 2, "fsdp": 2, "tensor": 2},
    "data alone": {"data": 8},
}
SIZES = {"vocab": 16, "width": 16, "heads": 4, "kv_heads": 2, "head_dim": 4, "mlp": 48}
RATE = 0.01


class Sharded:
    """Muon on a mesh, for the parameters of a decoder; only shapes until it is called."""

    def __init__(self, mesh: dict[str, int], config: DecoderConfig, **settings: Any) -> None:
        from trainer_muon import placement_of
        from trainer_muon.plugin import Muon
        from trainer_muon.transform import build_muon

        sizes = {"data": 1, "fsdp": 1, "tensor": 1} | mesh
        self.mesh = make_mesh(sizes, jax.devices()[: int(np.prod(list(sizes.values())))])
        rules = AxisRules(self.mesh, DEFAULT_RULES)
        self.infos = decoder_parameters(config)
        self.lies = jax.tree.map(rules.param_sharding, self.infos)
        self.params = jax.tree.map(
            lambda info, where: jax.ShapeDtypeStruct(info.shape, info.dtype, sharding=where),
            self.infos,
            self.lies,
        )
        placement = placement_of(self.params)[1]
        self.optimizer = build_muon(RATE, self.infos, Muon(**settings), placement, self.mesh)
        self.state = self._state()

    def _state(self) -> Any:
        """The optimizer's state lies as the parameters do."""
        known = {
            tuple(map(str, path)): where
            for path, where in jax.tree_util.tree_leaves_with_path(self.lies)
        }
        whole = NamedSharding(self.mesh, PartitionSpec())

        def place(path: Any, leaf: Any) -> jax.ShapeDtypeStruct:
            names = tuple(map(str, path))
            ends = (known.get(names[start:]) for start in range(len(names)))
            where = next(filter(None, ends), whole) if leaf.ndim else whole
            # What is kept for each neuron is small, and whole on each device.
            where = whole if "neurons" in "".join(names) else where
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

        made = jax.eval_shape(self.optimizer.init, self.params)
        return jax.tree_util.tree_map_with_path(place, made)

    @functools.cached_property
    def update(self) -> Any:
        shardings = (self.lies, jax.tree.map(lambda leaf: leaf.sharding, self.state))
        jitted = jax.jit(self.optimizer.update, out_shardings=shardings)
        return jitted.lower(self.params, self.state, self.params).compile()

    @property
    def cost(self) -> Cost:
        return cost_of(self.update.as_text())

    def two_updates(self) -> Any:
        """Return updates and state after two steps with gradients of a fixed seed."""
        state = jax.tree.map(
            lambda leaf: jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding), self.state
        )
        for step in range(2):
            grads, params = (self._random([step, each]) for each in range(2))
            updates, state = self.update(grads, state, params)
        return updates, state

    def _random(self, seed: Any) -> Any:
        random = np.random.default_rng(seed)
        return jax.tree.map(
            lambda leaf: jax.device_put(
                random.standard_normal(leaf.shape).astype(leaf.dtype), leaf.sharding
            ),
            self.params,
        )
