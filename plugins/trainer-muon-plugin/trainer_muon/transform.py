"""Muon as optax transformations: matrices by their orthogonalised momentum, the rest by AdamW."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, Mesh, PartitionSpec

from trainer_muon.coefficients import Coefficients, coefficients
from trainer_muon.infos import path_of
from trainer_muon.layout import Layout, chunk_of, layout_of, platform_of, worked_on
from trainer_muon.newton_schulz import orthogonalize
from trainer_muon.plan import Group, Part, Placement, Planned, make_plan

if TYPE_CHECKING:
    from trainer_muon.plugin import Muon

Schedule = Callable[[Any], Any]
Rate = float | Schedule
_BYTES_AT_ONCE = 256 * 2**20
_EPSILON = 1e-8  # of NorMuon's root


class MuonState(NamedTuple):
    """What Muon keeps: no hyperparameter, which all come from the config at every start.

    Attributes:
        count: int32, updates made.
        mu: float32, the momentum, in the shape of the parameters.
        neurons: float32, NorMuon's mean square of each output, the `in` axes of size 1; else ().
    """

    count: jax.Array  # type: ignore[assignment]
    mu: Any
    neurons: Any


def build_muon(
    learning_rate: Rate,
    infos: Any,
    settings: Muon,
    placement: Placement | None = None,
    mesh: Mesh | None = None,
) -> optax.GradientTransformation:
    """Return Muon for the matrices and AdamW for all else.

    Args:
        learning_rate: a number, or a schedule of updates made.
        infos: a ParamInfo for each parameter, in the tree of the parameters.
        settings: all else.
        placement: the mesh axes of each array axis, in the same tree; None: all are whole.
        mesh: the devices that the placement speaks of.

    Raises:
        UserError: see `make_plan`.
    """
    plan: list[Planned] = jax.tree.leaves(make_plan(infos, settings, placement, mesh))
    matrices = [each for each in plan if each.rule == "muon"]
    rest = [each for each in plan if each.rule == "adamw"]
    decayed = [each.info.kind in settings.adamw_decayed for each in rest]
    return optax.partition(
        {
            "muon": optax.chain(
                scale_by_muon(matrices, settings, mesh),
                add_decayed_weights(settings.weight_decay, settings.cautious),
                optax.scale_by_learning_rate(learning_rate),
            ),
            "adamw": in_float32(
                optax.adamw(
                    _times(learning_rate, settings.adamw_rate),
                    b1=settings.adamw_beta1,
                    b2=settings.adamw_beta2,
                    eps=settings.adamw_epsilon,
                    weight_decay=settings.adamw_weight_decay,
                    mask=functools.partial(_in_tree, rest, decayed),
                )
            ),
        },
        functools.partial(_in_tree, plan, [each.rule for each in plan]),
    )


def scale_by_muon(
    matrices: list[Planned], settings: Muon, mesh: Mesh | None = None
) -> optax.GradientTransformation:
    """Return what makes orthogonal updates of gradients, without learning rate and decay.

    `M <- β M + (1 - β) G`, the update is `scale · NewtonSchulz((1 - β) G + β M)` with Nesterov's
    momentum, else of M alone (Jordan, github.com/KellerJordan/Muon, 2024). Equal matrices of all
    parameters are orthogonalised together, see `layout`.

    Args:
        matrices: one Planned for each leaf of the gradients, in their order.
        settings: of the momentum and the iteration.
        mesh: the devices.
    """
    by = coefficients(settings.coefficients, settings.steps)
    gram = settings.uses_gram(platform_of(mesh))
    work = functools.partial(_orthogonal_update, settings=settings, by=by, gram=gram)

    def init(params: Any) -> MuonState:
        momentum = jax.tree.map(lambda leaf: jnp.zeros_like(leaf, jnp.float32), params)
        neurons: Any = ()
        if settings.normuon:
            kept = [jnp.zeros(each.neurons, jnp.float32) for each in matrices]
            neurons = jax.tree.unflatten(jax.tree.structure(momentum), kept)
        return MuonState(jnp.zeros((), jnp.int32), momentum, neurons)

    def update(grads: Any, state: MuonState, params: Any = None) -> tuple[Any, MuonState]:
        del params
        count = state.count + 1
        leaves, structure = jax.tree.flatten(grads)
        assert len(leaves) == len(matrices), "a gradient for each planned matrix"
        grads = [leaf.astype(jnp.float32) for leaf in leaves]
        beta = settings.momentum
        momentum = [
            beta * old + (1 - beta) * grad
            for old, grad in zip(jax.tree.leaves(state.mu), grads, strict=True)
        ]
        directions = [
            _direction(new, grad, count, settings)
            for new, grad in zip(momentum, grads, strict=True)
        ]
        if settings.iteration_dtype == "bfloat16":  # also on the wire between devices
            directions = [each.astype(jnp.bfloat16) for each in directions]
        neurons = jax.tree.leaves(state.neurons)
        orthogonalized = functools.partial(_orthogonalized, matrices, settings, mesh, work)
        made, neurons = _in_auto_axes(orthogonalized, matrices, mesh, settings.normuon)(
            directions, neurons
        )
        kept = jax.tree.unflatten(structure, neurons) if settings.normuon else ()
        return jax.tree.unflatten(structure, made), MuonState(
            count, jax.tree.unflatten(structure, momentum), kept
        )

    return optax.GradientTransformation(init, update)


def add_decayed_weights(weight_decay: float, cautious: bool) -> optax.GradientTransformation:
    """Return decoupled weight decay; cautious: only where it and the update agree in sign.

    Source of the mask: Chen et al., "Cautious Weight Decay", arXiv:2510.12402, 2025.
    """

    def decayed(update: jax.Array, param: jax.Array) -> jax.Array:
        decay = weight_decay * param.astype(jnp.float32)
        return update + (jnp.where(update * param >= 0, decay, 0.0) if cautious else decay)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        if params is None:
            raise ValueError("muon decays weights: call update(grads, state, params)")
        return jax.tree.map(decayed, updates, params), state

    if not weight_decay:
        return optax.identity()
    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def in_float32(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Return a transformation whose state and updates are float32, whatever the parameters are."""

    def cast(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        made: tuple[Any, Any] = inner.update(cast(updates), state, cast(params))
        return made

    return optax.GradientTransformation(lambda params: inner.init(cast(params)), update)


def _direction(momentum: jax.Array, grad: jax.Array, count: jax.Array, settings: Muon) -> jax.Array:
    beta = settings.momentum
    if not settings.bias_correction:
        return beta * momentum + (1 - beta) * grad if settings.nesterov else momentum
    now, then = 1 - beta**count, 1 - beta ** (count + 1)
    if not settings.nesterov:
        return momentum / now
    return beta * (momentum / then) + (1 - beta) * (grad / now)


def _orthogonalized(
    matrices: list[Planned],
    settings: Muon,
    mesh: Mesh | None,
    work: Any,
    directions: list[jax.Array],
    neurons: list[jax.Array],
) -> tuple[list[jax.Array], list[jax.Array]]:
    """Each update in its parameter's shape, and NorMuon's state."""
    groups: dict[Group, list[tuple[int, int]]] = {}
    for leaf, planned in enumerate(matrices):
        for index, part in enumerate(planned.parts):
            groups.setdefault(part.group, []).append((leaf, index))
    made: dict[tuple[int, int], list[jax.Array]] = {}
    for group, members in sorted(groups.items()):
        parts = [matrices[leaf].parts[index] for leaf, index in members]
        sources = [directions, neurons] if settings.normuon else [directions]
        folded = tuple(
            jnp.concatenate(
                [
                    part.view.fold(_cut(part, source[leaf]))
                    for part, (leaf, _) in zip(parts, members, strict=True)
                ],
                axis=1,
            )
            for source in sources
        )
        scaled = functools.partial(work, scale=group.scale)
        done = worked_on(_layout(group, parts, settings, mesh), folded, scaled)
        for part, member, pieces in zip(parts, members, _split(parts, done), strict=True):
            made[member] = [part.view.unfold(pieces[0].astype(jnp.float32))]
            if settings.normuon:
                made[member].append(part.view.unfold(pieces[1], part.view.neurons))
    joined = [_joined(planned, leaf, made) for leaf, planned in enumerate(matrices)]
    return [each[0] for each in joined], [each[1] for each in joined if settings.normuon]


def _layout(group: Group, parts: list[Part], settings: Muon, mesh: Mesh | None) -> Layout:
    chunk = chunk_of(group.matrix, settings.chunk, _BYTES_AT_ONCE, platform_of(mesh))
    return layout_of(group, sum(part.view.count for part in parts), mesh, chunk)


def _split(parts: list[Part], arrays: tuple[jax.Array, ...]) -> list[list[jax.Array]]:
    ends = [0]
    for part in parts:
        ends.append(ends[-1] + part.view.count)
    return [[x[:, start:stop] for x in arrays] for start, stop in itertools.pairwise(ends)]


def _cut(part: Part, x: jax.Array) -> jax.Array:
    if part.cut is None:
        return x
    axis, start, stop = part.cut
    return jax.lax.slice_in_dim(x, start, stop, axis=axis)


def _joined(
    planned: Planned, leaf: int, made: dict[tuple[int, int], list[jax.Array]]
) -> list[jax.Array]:
    blocks = [made[leaf, index] for index in range(len(planned.parts))]
    first = planned.parts[0]
    if first.cut is None:
        return blocks[0]
    axis = first.cut[0]
    return [jnp.concatenate(each, axis) for each in zip(*blocks, strict=True)]


def _orthogonal_update(
    arrays: tuple[jax.Array, ...], settings: Muon, by: Coefficients, gram: bool, scale: float
) -> tuple[jax.Array, ...]:
    dtype = jnp.dtype(settings.iteration_dtype)
    update = orthogonalize(arrays[0], by, dtype=dtype, gram=gram)
    if len(arrays) == 1:
        return (_scaled(update, scale),)
    neurons = arrays[1]
    # Of shape [..., rows, 1] or [..., 1, columns]: the other side is `in`.
    axis = -1 if neurons.shape[-1] == 1 else -2
    update, neurons = _normed_by_neuron(update, neurons, axis, settings.neurons_beta)
    return _scaled(update, scale), neurons


def _scaled(update: jax.Array, scale: float) -> jax.Array:
    """Within the work of a device: where the decay is added, XLA might multiply and add in one
    rounding on one mesh and in two on another."""
    return (update.astype(jnp.float32) * scale).astype(update.dtype)


def _normed_by_neuron(
    update: jax.Array, neurons: jax.Array, axis: int, beta: float
) -> tuple[jax.Array, jax.Array]:
    """NorMuon: each output by its own root mean square over time, the matrix's norm as before.

    Source: Li et al., arXiv:2510.05491, 2025. There the norm is set to 0.2 √(rows · columns)
    instead of kept, which is the same under the scale moonlight, up to how far the singular values
    are from 1.
    """
    x = update.astype(jnp.float32)
    neurons = beta * neurons + (1 - beta) * jnp.mean(jnp.square(x), axis=axis, keepdims=True)
    normed = x / (jnp.sqrt(neurons) + _EPSILON)
    before, after = (
        jnp.sqrt(jnp.sum(jnp.square(each), axis=(-2, -1), keepdims=True)) for each in (x, normed)
    )
    return (normed * (before / jnp.where(after == 0, 1.0, after))).astype(update.dtype), neurons


def _in_auto_axes(function: Any, matrices: list[Planned], mesh: Mesh | None, normuon: bool) -> Any:
    """On a mesh of Explicit axes, XLA may choose within; the results lie as the parameters do."""
    if mesh is None or AxisType.Explicit not in mesh.axis_types:
        return function
    if len(set(mesh.axis_types)) > 1:
        raise ValueError(f"muon needs a mesh whose axes are of one type, not {mesh.axis_types}")
    if jax.sharding.get_abstract_mesh().empty:
        raise ValueError(
            "the parameters lie on a mesh whose axes are Explicit, as jax.make_mesh makes them: "
            "call muon's update within `with jax.set_mesh(mesh):`, or give jax.make_mesh "
            "axis_types=(jax.sharding.AxisType.Auto,) for each axis"
        )
    lies = [PartitionSpec(*(axes or None for axes in each.spread)) for each in matrices]
    kept = [PartitionSpec()] * (len(matrices) if normuon else 0)
    return jax.sharding.auto_axes(function, out_sharding=(lies, kept))


def _in_tree(plan: list[Planned], values: list[Any], tree: Any) -> Any:
    """Values, one for each planned array, in a tree of these arrays: `nnx.Optimizer` passes another
    at each call, with and without its Variables."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    if len(leaves) != len(plan):
        raise ValueError(
            f"muon was told of {len(plan)} arrays, and is given {len(leaves)}; describe the very "
            f"tree that it updates"
        )
    for planned, (where, leaf) in zip(plan, leaves, strict=True):
        told = (planned.info.path.removesuffix("/value"), planned.info.shape)
        given = (path_of(where).removesuffix("/value"), tuple(leaf.shape))
        if told != given:
            raise ValueError(
                f"muon was told of {told[0]} {list(told[1])}, and is given {given[0]} "
                f"{list(given[1])} in its place; describe the very tree that it updates"
            )
    return jax.tree.unflatten(jax.tree.structure(tree), values)


def _times(rate: Rate, by: float) -> Rate:
    if by == 1:
        return rate
    return (lambda count: rate(count) * by) if callable(rate) else rate * by
