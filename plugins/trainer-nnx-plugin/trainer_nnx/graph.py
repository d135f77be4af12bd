"""Take an NNX module apart into plain dicts with string keys, and put it together again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import attrs
import jax
import jax.numpy as jnp
from flax import nnx

from trainer_core.errors import UserError
from trainer_core.loss import MODEL
from trainer_core.randomness import fold
from trainer_core.types import Buffers, ParamInfo, Params
from trainer_core.user_module import building_raised, carried, nested, without_a_mesh
from trainer_nnx.bridge import describing, is_sown
from trainer_nnx.infos import param_info

_OWN_STATE = (nnx.Module, nnx.Variable, nnx.Rngs, nnx.RngStream)
EPHEMERAL = (nnx.Intermediate, nnx.Cache, is_sown)
_CREATING = "create it in __init__, so that it can be saved, or make it an nnx.Intermediate"

Keys = tuple[Any, ...]  # a path as NNX has it: an item of an nnx.List has an int


@attrs.frozen
class Slot:
    """One array: where NNX keeps it, and what is known of it (of a random stream: its shape)."""

    keys: Keys
    info: ParamInfo


@attrs.frozen
class Stream:
    """One array of a random stream: a key, or how often it was used."""

    keys: Keys
    value: Any  # its shape and dtype


@attrs.frozen(kw_only=True, eq=False)
class Layout:
    """What a module consists of, without its arrays."""

    module_type: type[nnx.Module]
    graphdef: Any
    params: tuple[Slot, ...]
    buffers: tuple[Slot, ...]
    streams: tuple[Stream, ...]

    @property
    def name(self) -> str:
        return self.module_type.__qualname__

    def param_infos(self) -> dict[str, Any]:
        return nested((slot.keys, slot.info) for slot in self.params)

    def buffer_infos(self) -> dict[str, Any]:
        return nested((slot.keys, slot.info) for slot in self.buffers)


def layout(make: Callable[[nnx.Rngs], nnx.Module]) -> Layout:
    """Return the layout of the module that `make` makes; nothing is allocated.

    Raises:
        UserError: it cannot be made, or holds what cannot be trained or saved.
    """
    found: list[Layout] = []

    def survey(key: jax.Array) -> None:
        module = build(make, key)
        owners = dict(nnx.iter_modules(module))
        states: Any = nnx.split(module, nnx.Param, nnx.RngState, ...)
        graphdef, params, streams, buffers = states

        def slots(state: Any) -> tuple[Slot, ...]:
            return tuple(
                Slot(keys, param_info("/".join(map(str, keys)), leaf, owners.get(keys[:-1])))
                for keys, leaf in nnx.to_flat_state(state)
            )

        found.append(
            Layout(
                module_type=type(module),
                graphdef=graphdef,
                params=slots(params),
                buffers=slots(buffers),
                streams=tuple(
                    Stream(keys, jax.typeof(_array(leaf)))
                    for keys, leaf in nnx.to_flat_state(streams)
                ),
            )
        )

    try:
        # Not `nnx.eval_shape`: there, arrays that are plain attributes come back as shapes.
        jax.eval_shape(survey, jax.random.key(0))
    except UserError as error:
        # Without JAX's note on its traceback.
        raise UserError(str(error), *(error.keys or MODEL)) from error.__cause__
    return found[0]


def build(make: Callable[[nnx.Rngs], nnx.Module], key: jax.Array) -> nnx.Module:
    """Make the module, ready to be split. Logical axis names stay names: none is applied."""
    unplaced: Any = nnx.use_eager_sharding(False)  # type: ignore[no-untyped-call]
    with unplaced, without_a_mesh(), describing():
        try:
            module = make(nnx.Rngs(key))
            if isinstance(module, nnx.Module):
                nnx.pop(module, EPHEMERAL)
        except UserError:
            raise
        except Exception as error:
            raise UserError(_why(error)) from error
    if not isinstance(module, nnx.Module):
        raise UserError(f"{module!r} is a {type(module).__name__}, not a flax.nnx.Module")
    _adopt_arrays(module)
    return module


def split(module: nnx.Module, parts: Layout) -> tuple[Params, Buffers]:
    """Return the module's parameters and buffers as nested dicts with string keys.

    Raises:
        UserError: a Variable has another shape than at first, or did not exist then.
    """
    states: Any = nnx.split(module, nnx.Param, nnx.RngState, EPHEMERAL, ...)
    _, params, _, _, buffers = states
    return (
        nested(_values(params, parts.params, parts.name)),
        nested(_values(buffers, parts.buffers, parts.name)),
    )


def join(parts: Layout, params: Params, buffers: Buffers, key: jax.Array) -> Any:
    """Return the module with these arrays, its random streams seeded from the key."""
    values = [(slot.keys, _at(params, slot.keys)) for slot in parts.params]
    values += [(slot.keys, _at(buffers, slot.keys)) for slot in parts.buffers]
    values += [(stream.keys, _seeded(stream, key)) for stream in parts.streams]
    state = nnx.from_flat_state(values)
    return nnx.merge(parts.graphdef, nnx.to_pure_dict(state))


def _seeded(stream: Stream, key: jax.Array) -> jax.Array:
    shape, dtype = stream.value.shape, stream.value.dtype
    if not jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return jnp.zeros(shape, dtype)  # how often the stream was used
    key = fold(key, *map(str, stream.keys))
    return jax.random.split(key, shape) if shape else key  # stacked layers: a key each


def _values(state: Any, slots: tuple[Slot, ...], name: str) -> Iterator[tuple[Keys, jax.Array]]:
    arrays = {keys: _array(leaf) for keys, leaf in nnx.to_flat_state(state)}
    return carried(((slot.keys, slot.info) for slot in slots), arrays, name, _CREATING)


def _array(leaf: Any) -> Any:
    return leaf.get_value() if isinstance(leaf, nnx.Variable) else leaf


def _adopt_arrays(module: nnx.Module) -> None:
    """Make every array that is an attribute part of the state.

    Inside a trace, newer Flax versions take it for a static value, and a tracer would leak.
    """
    known = {id(_array(leaf)) for _, leaf in nnx.to_flat_state(nnx.state(module))}
    for _, node in list(nnx.iter_modules(module)):
        for name, value in list(vars(node).items()):
            leaves = jax.tree.leaves(value, is_leaf=lambda leaf: isinstance(leaf, _OWN_STATE))
            hidden = [
                leaf for leaf in leaves if isinstance(leaf, jax.Array) and id(leaf) not in known
            ]
            if hidden and value is not hidden[0]:
                raise UserError(
                    f"{type(node).__qualname__}.{name} holds arrays in a "
                    f"{type(value).__name__}; write self.{name} = nnx.data(...)"
                )
            if hidden:
                setattr(node, name, nnx.data(value))


def _why(error: Exception) -> str:
    first_line = str(error).split("\n")[0]
    if "static attribute" in first_line:
        return (
            f"{first_line} Hold modules in nnx.List([...]) or nnx.Dict(...), so that their "
            f"parameters are found"
        )
    return building_raised(error)


def _at(tree: Any, keys: Keys) -> Any:
    for key in keys:
        tree = tree[str(key)]
    return tree
