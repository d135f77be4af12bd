"""What each array of a checkpoint is: of the model, of the optimizer, the step, or neither."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import TypeAlias

import attrs

from trainer_checkpoint.convert.paths import in_order
from trainer_core.errors import UserError

Slot: TypeAlias = tuple[str, int]  # such as the first `mu`, of those that a parameter has

_OPTIMIZERS = ("opt_state", "optimizer", "optimizer_state", "opt")
_WRAPPED = ("params", "model", *_OPTIMIZERS)
_OF_THE_RUN = ("key", "extra")
_VALUE = "/value"


@attrs.frozen
class Side:
    """The arrays of one side of a conversion.

    Attributes:
        model: name to path, of parameters and buffers; a name is the same wherever a checkpoint
            keeps its parameters: `params/params/a/kernel` is `a/kernel`.
        slots: what the optimizer keeps for each parameter, by the parameter's name: the path.
        others: what else the optimizer has, by the last key: the paths in order.
        buffers: the names in `model` that are no parameters, where that is known.
        short: the name without its collection (`batch_stats`), of what stands beside parameters.
        steps: where the number of steps stands.
        run_only: the key and the extra state of a run of ours.
    """

    model: Mapping[str, str]
    slots: Mapping[Slot, Mapping[str, str]]
    others: Mapping[str, list[str]]
    buffers: tuple[str, ...] = ()
    short: Mapping[str, str] = attrs.field(factory=dict)
    steps: tuple[str, ...] = ()
    run_only: tuple[str, ...] = ()

    @property
    def optimizer(self) -> dict[str, str]:
        """What belongs to the optimizer: path to kind, such as `mu` or `count`."""
        slots = {path: kind for (kind, _), slot in self.slots.items() for path in slot.values()}
        return slots | {path: kind for kind, paths in self.others.items() for path in paths}

    @property
    def owners(self) -> dict[str, tuple[str, str]]:
        """What the optimizer keeps for a parameter: path to the parameter's path, and the kind."""
        return {
            path: (self.model[name], kind)
            for (kind, _), slot in self.slots.items()
            for name, path in slot.items()
        }


def side_of_run(paths: Iterable[str]) -> Side:
    """Sort the arrays of a run of ours."""
    paths = sorted(paths, key=in_order)
    model = {
        path.partition("/")[2]: path for path in paths if path.startswith(("params/", "buffers/"))
    }
    tails = {name: name for name, path in model.items() if path.startswith("params/")}
    slots, others = _optimizer([p for p in paths if p.startswith("opt_state/")], tails, {})
    return Side(
        model=model,
        slots=slots,
        others=others,
        buffers=tuple(name for name, path in model.items() if path.startswith("buffers/")),
        steps=tuple(path for path in paths if path == "step"),
        run_only=tuple(path for path in paths if path.split("/")[0] in _OF_THE_RUN),
    )


def side_of_others(paths: Iterable[str], prefix: str | None, known: Collection[str]) -> Side:
    """Sort the arrays of a checkpoint of other code.

    Args:
        paths: all of them.
        prefix: what the paths of parameters begin with; None: `params/params/`, `params/`,
            `model/` or nothing, whichever is there.
        known: names of the target, which are not shortened: a box's `value` is, otherwise.

    Raises:
        UserError: no path begins with the prefix.
    """
    paths = sorted(paths, key=in_order)
    wrapper = _wrapper(paths)
    roots = (*(f"{wrapper}{root}" for root in ("params/params/", "params/", "model/")), wrapper)
    root = next(each for each in roots if any(path.startswith(each) for path in paths))
    if prefix is not None:
        root = prefix
        if not any(path.startswith(root) for path in paths):
            tops = ", ".join(sorted({path.split("/")[0] for path in paths}))
            raise UserError(f"no array's path begins with prefix = {prefix!r}; they begin: {tops}")
    top = next((f"{wrapper}{key}/" for key in _OPTIMIZERS if _any(paths, f"{wrapper}{key}/")), None)
    steps = {f"{wrapper}step", f"{top}step", f"{top}step{_VALUE}"}
    of_optimizer = [path for path in paths if top and path.startswith(top) and path not in steps]
    of_model = [path for path in paths if path not in steps and path not in set(of_optimizer)]

    plain = _unboxed(paths)
    names = {}
    for path in of_model:
        name = _name(path, root, wrapper)
        names[path] = name if name in known else _name(plain[path], root, wrapper)
    tails = {}
    for path, name in names.items():
        box = path.removeprefix(plain[path])
        for tail in (*_tails(plain[path], name), name):
            tails[tail] = tails[tail + box] = name
    slots, others = _optimizer(of_optimizer, tails, plain)
    return Side(
        model={name: path for path, name in names.items()},
        slots=slots,
        others=others,
        short={
            name: name.partition("/")[2]
            for path, name in names.items()
            # What a run wrote as `buffers/…` has no collection in front.
            if "/" in name and not path.startswith((root, f"{wrapper}buffers/"))
        },
        steps=tuple(path for path in paths if path in steps),
    )


def _optimizer(
    paths: Iterable[str], tails: Mapping[str, str], plain: Mapping[str, str]
) -> tuple[dict[Slot, dict[str, str]], dict[str, list[str]]]:
    """A path that ends with a parameter's is what a slot keeps for it; partitioned optimizers
    have a slot in pieces, so that slots are counted for each parameter alone.
    """
    slots: dict[Slot, dict[str, str]] = {}
    others: dict[str, list[str]] = {}
    counted: Counter[tuple[str, str]] = Counter()
    for path in paths:
        keys = plain.get(path, path).split("/")
        found = _owner(path.split("/"), tails) or _owner(keys, tails)
        if found is None:
            others.setdefault(keys[-1], []).append(path)
            continue
        kind, name = found
        slots.setdefault((kind, counted[kind, name]), {})[name] = path
        counted[kind, name] += 1
    return slots, others


def _owner(keys: list[str], tails: Mapping[str, str]) -> tuple[str, str] | None:
    """Return the slot's own name, and the parameter's; the longest that fits is meant."""
    for at in range(1, len(keys)):
        name = tails.get("/".join(keys[at:]))
        if name is None:
            continue
        kind = next((key for key in reversed(keys[:at]) if not key.isdigit()), "")
        # A count of a chain, `0/count`, belongs to no parameter that is called `count`.
        if at < len(keys) - 1 or not keys[at - 1].isdigit():
            return kind, name
    return None


def _wrapper(paths: list[str]) -> str:
    """Return the key that all is under, as in `state/params/…`, with its slash; or nothing."""
    first = {path.split("/")[0] for path in paths}
    second = {path.split("/")[1] for path in paths if "/" in path}
    if len(first) == 1 and first.isdisjoint(_WRAPPED) and second & set(_WRAPPED):
        return f"{first.pop()}/"
    return ""


def _name(path: str, root: str, wrapper: str) -> str:
    if path.startswith(root):
        return path.removeprefix(root)
    # Beside `params/params` may stand `params/batch_stats`: whole variables under one key.
    above = root.removesuffix("params/") if root.endswith("params/params/") else wrapper
    return path.removeprefix(above if path.startswith(above) else wrapper).removeprefix("buffers/")


def _tails(path: str, name: str) -> Iterable[str]:
    """Yield the ends of a path that have at least as many keys as the name."""
    keys = path.split("/")
    return ("/".join(keys[at:]) for at in range(max(1, len(keys) - name.count("/"))))


def _unboxed(paths: Iterable[str]) -> dict[str, str]:
    """Return each path without the `value` of a box: of Linen metadata, or of an NNX Variable."""
    paths = list(paths)
    siblings = Counter(path.rpartition("/")[0] for path in paths)
    boxed = {p for p in paths if p.endswith(_VALUE) and siblings[p.removesuffix(_VALUE)] == 1}
    return {path: path.removesuffix(_VALUE) if path in boxed else path for path in paths}


def _any(paths: Iterable[str], prefix: str) -> bool:
    return any(path.startswith(prefix) for path in paths)
