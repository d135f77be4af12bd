"""NNX modules inside a Linen module, by `nnx.bridge.to_linen`: what their layers tell."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from flax import linen as nn

from trainer_core.errors import UserError
from trainer_linen.infos import Origin


def is_bridge(module: nn.Module) -> bool:
    # Where there is one, NNX is imported: a Linen run does not import it.
    bridge = sys.modules.get("flax.nnx.bridge")
    return bridge is not None and isinstance(module, bridge.ToLinen)


def arrays_of(module: Any) -> Iterator[tuple[tuple[Any, ...], Origin]]:
    """Yield where a bridge keeps each array, and its origin: the NNX module is made once more.

    Raises:
        UserError: trainer-nnx-plugin is not installed; the module keeps an array that is no
            Variable; it keeps random streams of which `nn.scan` gives it only some.
    """
    from flax import nnx

    path, streams = "/".join(module.path) or "the model", module.scope.rngs
    try:
        from trainer_nnx.infos import known
    except ImportError as error:
        raise UserError(
            f"{path} is an NNX module: install trainer-nnx-plugin, which knows its layers"
        ) from error
    if not streams:
        return  # within `nn.remat` of the bridge itself; the call around it follows
    rngs = {} if module.skip_rng else {"rngs": nnx.Rngs(**dict.fromkeys(streams, 0))}
    made = module.nnx_class(*module.args, **module.kwargs, **rngs)
    kept = {leaf.tag for _, leaf in nnx.to_flat_state(nnx.state(made, nnx.RngKey))}
    if "params" in kept and "default" not in streams:
        raise UserError(
            f"{path}, an NNX module, keeps its rngs, and nn.scan or nn.vmap holds some of them "
            f"back, from which Flax would draw the same numbers at every step; add "
            f'"default": True to its split_rngs'
        )
    owners = dict(nnx.iter_modules(made))
    for keys, leaf in nnx.to_flat_state(nnx.state(made, nnx.Not(nnx.RngState))):
        if not isinstance(leaf, nnx.Variable):
            raise UserError(
                f"{'/'.join(map(str, (*module.path, *keys)))} is an array of an NNX module, and "
                f"Linen keeps its Variables alone; make it one"
            )
        value = leaf.get_value()
        collection = nnx.variable_name_from_type(type(leaf), allow_register=True)
        told = known(owners.get(keys[:-1]), str(keys[-1]), value.ndim)
        yield (collection, *module.path, *keys), Origin(value, *told)
