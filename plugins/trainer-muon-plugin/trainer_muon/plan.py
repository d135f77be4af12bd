"""Which parameter is whose, as which matrices, in which group: decided once, from the infos."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import attrs
import jax

from trainer_core.errors import UserError, listed
from trainer_core.suggest import did_you_mean
from trainer_core.types import ParamInfo
from trainer_muon.scale import scale_of
from trainer_muon.view import MeshAxes, View, one_a_neuron, view_of

if TYPE_CHECKING:
    from trainer_muon.plugin import Muon

Rule = Literal["muon", "adamw"]
# In the tree of the parameters: for each, the mesh axes of each array axis; None: all are whole.
Placement = Any
Cut = tuple[int, int, int]  # array axis, start, stop


@attrs.frozen
class Part:
    """Equal matrices of one parameter: all of it, or one block of a fused projection.

    Attributes:
        block: its name; empty where the parameter has none.
        cut: where the block lies; None for the whole array.
        view: how the array, or the block, is a stack of matrices.
        scale: by which an orthogonal update is multiplied.
        group: what it must have in common with others to be orthogonalised with them: shape,
            and the mesh axes of stack, rows and columns.
    """

    block: str
    cut: Cut | None
    view: View
    scale: float
    group: Group


@attrs.frozen(order=True)
class Group:
    """What matrices that are orthogonalised together have in common.

    Attributes:
        matrix: (rows, columns).
        over: the mesh axes of the stack's parts, of the rows and of the columns.
        outs_are_rows: of the views; None where it makes no difference.
        parts: of the stack.
    """

    matrix: tuple[int, int]
    over: tuple[MeshAxes, MeshAxes, MeshAxes]
    outs_are_rows: bool | None
    parts: int


@attrs.frozen
class Planned:
    """What becomes of one parameter.

    Attributes:
        info: of the parameter.
        rule: whose it is.
        why: what decided that, in a few words: mostly its kind.
        parts: its matrices; empty for AdamW.
        spread: the mesh axes of each array axis.
    """

    info: ParamInfo
    rule: Rule
    why: str
    parts: tuple[Part, ...] = ()
    spread: tuple[MeshAxes, ...] = ()

    @property
    def neurons(self) -> tuple[int, ...]:
        """The shape of one number for each output: the `in` axes have size 1."""
        return one_a_neuron(self.info.shape, self.parts[0].view.ins)


def make_plan(
    infos: Any, settings: Muon, placement: Placement | None = None, mesh: Any = None
) -> Any:
    """Return a Planned for each ParamInfo, in the same tree.

    Args:
        infos: a tree of ParamInfo.
        settings: of the optimizer.
        placement: the mesh axes of each array axis, in the same tree; None: all are whole.
        mesh: the devices; None where there is no placement.

    Raises:
        UserError: a parameter of which nobody said what it is, a matrix without roles, an
            embedding that calls itself a matrix, a rule that fits nothing or a path that two
            rules fit; with every path.
    """
    leaves: list[ParamInfo] = jax.tree.leaves(infos)
    problems = _impossible_heads(settings, leaves)
    if problems:  # else each parameter would say the same once more
        raise _unfit(problems, "optimizer.per_head")
    problems = _unused_rules(settings.rules, leaves)

    def planned(info: ParamInfo, spread: tuple[MeshAxes, ...]) -> Planned | None:
        try:
            return _planned(info, settings, spread, mesh)
        except ValueError as error:
            problems.append(f"{info.path} {list(info.shape)}: {error}")
            return None

    if placement is None:
        placement = jax.tree.map(lambda info: ((),) * len(info.shape), infos)
    plan = jax.tree.map(planned, infos, placement)
    if problems:
        raise _unfit(problems, "optimizer.rules")
    return plan


def _unfit(problems: Sequence[str], key: str) -> UserError:
    return UserError(f"muon does not fit the model:{listed(problems)}", key, "optimizer.use")


def _unused_rules(rules: Mapping[str, str], infos: Sequence[ParamInfo]) -> list[str]:
    return [
        f'rules: "{pattern}" fits no parameter'
        for pattern in rules
        if not any(fnmatch.fnmatchcase(info.path, pattern) for info in infos)
    ]


def _impossible_heads(settings: Muon, infos: Sequence[ParamInfo]) -> list[str]:
    axes = {axis.name for info in infos for axis in info.axes if axis.name is not None}
    unknown = [
        f"per_head: no parameter has an axis {name!r}{did_you_mean(name, axes)}"
        for name in settings.per_head
        if name not in axes
    ]
    stacked = set(settings.per_head)
    left_bare = [
        info.path
        for info in infos
        if info.kind in settings.kinds
        and any(
            names and names <= stacked
            for role in ("in", "out")
            for names in [{axis.name for axis in info.axes if axis.role == role}]
        )
    ]
    if not left_bare:
        return unknown
    return [
        *unknown,
        f"per_head = {settings.per_head} leaves nothing to be orthogonalised of "
        f"{left_bare[0]}{f' and {len(left_bare) - 1} more' if left_bare[1:] else ''}; an axis in it "
        f"must have another of the same role beside it, as heads has head_dim",
    ]


def _planned(info: ParamInfo, settings: Muon, spread: tuple[MeshAxes, ...], mesh: Any) -> Planned:
    rule, why = _rule(info, settings)
    if rule == "adamw":
        return Planned(info, rule, why, spread=spread)
    try:
        parts = tuple(_part(info, block, settings, spread, mesh) for block in _blocks(info))
    except ValueError as error:
        raise ValueError(
            f"{error}; give each axis its role, or {_excepted(info)}"
        ) from None
    return Planned(info, rule, why, parts, spread)


def _rule(info: ParamInfo, settings: Muon) -> tuple[Rule, str]:
    fitting = {
        pattern: rule
        for pattern, rule in settings.rules.items()
        if fnmatch.fnmatchcase(info.path, pattern)
    }
    if len(fitting) > 1:
        quoted = " and ".join(f'"{pattern}"' for pattern in fitting)
        raise ValueError(f"both rules {quoted} fit it; keep one of them")
    for pattern, rule in fitting.items():
        return ("muon" if rule == "muon" else "adamw"), f'rule "{pattern}"'
    if info.tied_to is not None:
        return "adamw", f"tied to {info.tied_to}"
    if info.kind == "matrix" and any(axis.name == "vocab" for axis in info.axes):
        raise ValueError(
            "its axis 'vocab' says that it embeds or predicts tokens; make it kind 'embedding' "
            f"or 'unembedding', or {_excepted(info)}"
        )
    if info.kind in settings.kinds:
        return "muon", info.kind
    if info.kind != "other":
        return "adamw", info.kind
    if sum(axis.role != "stack" for axis in info.axes) < 2:
        return "adamw", "a vector"
    raise ValueError(
        f"its kind is 'other'; say in the model what it is, or {_excepted(info)}"
    )


def _excepted(info: ParamInfo) -> str:
    return f'leave it to AdamW by rules = {{"{info.path}" = "adamw"}}'


def _blocks(info: ParamInfo) -> Sequence[tuple[str, Cut | None]]:
    """Each block's name, and where it lies along the first `out` axis."""
    if not info.blocks:
        return [("", None)]
    outs = [index for index, axis in enumerate(info.axes) if axis.role == "out"]
    if not outs:
        raise ValueError("it has blocks, and none of its axes is an 'out' axis")
    within = math.prod(info.shape[axis] for axis in outs[1:])
    blocks, start = [], 0
    for name, size in info.blocks:
        if size % within:
            raise ValueError(f"its block {name} of {size} is no multiple of {within}")
        blocks.append((name, (outs[0], start, start + size // within)))
        start += size // within
    if start != info.shape[outs[0]]:
        raise ValueError(
            f"its blocks add up to {start * within}, its outputs are {info.shape[outs[0]] * within}"
        )
    return blocks


def _part(
    info: ParamInfo,
    block: tuple[str, Cut | None],
    settings: Muon,
    spread: tuple[MeshAxes, ...],
    mesh: Any,
) -> Part:
    name, cut = block
    shape = list(info.shape)
    if cut is not None:
        axis, start, stop = cut
        shape[axis] = stop - start
        # A block ends where it ends, not where a device does.
        spread = (*spread[:axis], (), *spread[axis + 1 :])
    pieces = [math.prod(mesh.shape[each] for each in axes) if axes else 1 for axes in spread]
    view = view_of(info, tuple(shape), settings.per_head, pieces)
    return Part(name, cut, view, scale_of(view, settings), _group(view, spread, settings))


def _group(view: View, spread: tuple[MeshAxes, ...], settings: Muon) -> Group:
    def mesh_axes(axes: Sequence[int]) -> MeshAxes:
        # Only the first axis of a side can stay spread when the side becomes one axis; the parts
        # of a stack are all in front.
        return tuple(each for axis in axes for each in spread[axis])

    def of_side(axes: Sequence[int]) -> MeshAxes:
        return mesh_axes(axes[:1])

    rows, columns = (view.outs, view.ins) if view.outs_are_rows else (view.ins, view.outs)
    return Group(
        matrix=view.matrix,
        over=(mesh_axes(view.stack), of_side(rows), of_side(columns)),
        outs_are_rows=view.outs_are_rows if settings.normuon else None,
        parts=math.prod(view.parts),
    )


def described(plan: Sequence[Planned], settings: Muon) -> dict[str, dict[str, Any]]:
    """Return what becomes of each parameter, as `trainer explain optimizer` shows it."""
    groups = sorted({part.group for planned in plan for part in planned.parts})
    rows: dict[str, dict[str, Any]] = {}
    for planned in plan:
        row: dict[str, Any] = {"rule": planned.rule}
        if planned.parts:
            row["matrices"] = _each(planned, lambda part: part.view.total)
            row["matrix"] = _each(planned, lambda part: _times(part.view.matrix))
            row["group"] = _each(planned, lambda part: groups.index(part.group) + 1)
            row["scale"] = _each(planned, lambda part: part.scale)
            row["decay"] = settings.weight_decay
        else:
            decays = planned.info.kind in settings.adamw_decayed
            row["decay"] = settings.adamw_weight_decay if decays else 0.0
        rows[planned.info.path] = row
    return rows


def _each(planned: Planned, value: Callable[[Part], int | float | str]) -> Any:
    """The value of the array, or a list of those of its blocks."""
    values = [value(part) for part in planned.parts]
    return values if planned.info.blocks else values[0]


def _times(matrix: tuple[int, int]) -> str:
    return f"{matrix[0]} x {matrix[1]}"
