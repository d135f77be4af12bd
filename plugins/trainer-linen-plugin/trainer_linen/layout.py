"""Take a Linen module's variables apart into plain dicts with string keys, and join them again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import flax
import jax
import jax.numpy as jnp
from flax import errors
from flax import linen as nn
from flax.core.partial_eval import lazy_init
from flax.traverse_util import unflatten_dict

from trainer_core.errors import UserError
from trainer_core.loss import MODEL
from trainer_core.randomness import fold
from trainer_core.types import Buffers, ParamInfo, Params
from trainer_core.user_module import building_raised, carried, nested, without_a_mesh
from trainer_linen.boxes import content
from trainer_linen.infos import Origin, array_info
from trainer_linen.origins import note_origins
from trainer_linen.variables import Keys, Path, flat, kept, paths

_CREATING = (
    "create it whether `train` is true or not, so that it exists at first and is saved, or sow it "
    "into intermediates"
)


@attrs.frozen
class Slot:
    """One array: where Linen keeps it, its path in the state, and what is known of it."""

    keys: Keys
    path: Path
    info: ParamInfo


@attrs.frozen(kw_only=True, eq=False)
class Layout:
    """What a module consists of, without its arrays.

    Attributes:
        module: the module, unbound.
        streams: the names of its random streams.
        make: `make(key)` returns its first variables, by the shapes of a batch alone: no forward
            pass is computed.
    """

    module: nn.Module
    streams: tuple[str, ...]
    make: Callable[[jax.Array], Any]
    params: tuple[Slot, ...]
    buffers: tuple[Slot, ...]

    @property
    def name(self) -> str:
        return type(self.module).__qualname__

    def param_infos(self) -> dict[str, Any]:
        return nested((slot.path, slot.info) for slot in self.params)

    def buffer_infos(self) -> dict[str, Any]:
        return nested((slot.path, slot.info) for slot in self.buffers)


def layout(
    module: Any,
    batch: Mapping[str, Any],
    streams: Sequence[str],
    method: Any,
    options: Mapping[str, Any],
) -> Layout:
    """Return the layout of a module; nothing is allocated.

    Args:
        module: a Linen module.
        batch: the shape and dtype of each array of a batch.
        streams: the names of its random streams.
        method: what it is initialised by: its method of this name, or a function of it.
        options: keyword arguments of the method.

    Raises:
        UserError: it is no Linen module, its first call raises, or it cannot be trained.
    """
    if not isinstance(module, nn.Module):
        raise UserError(f"{module!r} is a {type(module).__name__}, not a flax.linen.Module", *MODEL)
    abstract = jax.eval_shape(lambda: jax.tree.map(_empty, dict(batch)))

    def first(rngs: Any, batch: Any) -> Any:
        return kept(module.init(rngs, batch, method=method, **options))

    def make(key: jax.Array) -> Any:
        rngs = {"params": key, **seeded(streams, key)}
        with without_a_mesh(), unplaced():
            return lazy_init(first)(rngs, abstract)  # type: ignore[no-untyped-call]

    origins: dict[Keys, Origin] = {}
    try:
        with nn.intercept_methods(note_origins(origins)):
            variables = jax.eval_shape(make, jax.random.key(0))
        leaves = dict(flat(variables))
        slots = [
            Slot(keys, path, _info(keys, path, leaves[keys], origins))
            for keys, path in paths(leaves).items()
        ]
    except UserError as error:
        # Without JAX's note on its traceback.
        raise UserError(str(error), *(error.keys or MODEL)) from error.__cause__
    except errors.LazyInitError as error:
        raise UserError(
            f"{type(module).__qualname__}: a first value depends on the values of a batch, and "
            f"must depend on its shapes alone; change variables under "
            f"`if not self.is_initializing():`",
            *MODEL,
        ) from error
    except Exception as error:
        raise _why(error) from error
    return Layout(
        module=module,
        streams=tuple(streams),
        make=make,
        params=tuple(slot for slot in slots if slot.keys[0] == "params"),
        buffers=tuple(slot for slot in slots if slot.keys[0] != "params"),
    )


def _empty(array: Any) -> jax.Array:
    return jnp.empty(array.shape, jax.dtypes.canonicalize_dtype(array.dtype))


def seeded(streams: Sequence[str], key: jax.Array) -> dict[str, jax.Array]:
    """Return the key of each random stream; Linen folds in the path of the module that asks.

    A bridged NNX module draws from `default` what no other stream is for. Without one, Flax would
    give it the same numbers at every step.
    """
    return {name: fold(key, name) for name in (*streams, "default")}


def split(variables: Any, parts: Layout) -> tuple[Params, Buffers]:
    """Return first variables as parameters and buffers: nested dicts with string keys."""
    values = {keys: content(leaf) for keys, leaf in flat(variables)}
    params = nested((slot.path, values[slot.keys]) for slot in parts.params)
    return params, nested((slot.path, values[slot.keys]) for slot in parts.buffers)


def join(parts: Layout, params: Params, buffers: Buffers) -> dict[str, Any]:
    """Return parameters and buffers as the collections that Linen takes, each under its keys."""
    values = {slot.keys: _at(params, slot.path) for slot in parts.params}
    values |= {slot.keys: _at(buffers, slot.path) for slot in parts.buffers}
    collections: dict[str, Any] = unflatten_dict(values)  # type: ignore[no-untyped-call]
    return collections


def buffers_after(variables: Any, parts: Layout) -> Buffers:
    """Return what a call left in the collections that are saved.

    Raises:
        UserError: a variable has another shape than at first, or did not exist then.
    """
    known = {slot.keys: slot.path for slot in parts.buffers}
    arrays = {known.get(keys, keys): content(leaf) for keys, leaf in flat(variables)}
    buffers = [(slot.path, slot.info) for slot in parts.buffers]
    return nested(carried(buffers, arrays, parts.name, _CREATING))


def _info(keys: Keys, path: Path, leaf: Any, origins: Mapping[Keys, Origin]) -> ParamInfo:
    return array_info("/".join(path), leaf, keys[0] == "params", origins.get(keys))


def _at(tree: Any, path: Path) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def unplaced() -> Any:
    """Return a context in which bridged NNX modules make Variables without placing them."""
    return flax.config.temp_flip_flag("always_shard_variable", False)


def _why(error: Exception) -> UserError:
    if isinstance(error, errors.InvalidRngError):
        return no_stream(error)
    if "No RngStream named" in str(error):
        return UserError(
            f"{error.args[0]} Name it in split_rngs of the nn.scan or nn.vmap around the module",
            *MODEL,
        )
    return UserError(building_raised(error), *MODEL)


def no_stream(error: Exception) -> UserError:
    first_line = str(error).split(" (")[0]
    return UserError(
        f"{first_line}, and no random stream has this name: give the names of all of them, "
        f'rngs = ["dropout", ...]',
        *MODEL,
        "model.rngs",
    )
