"""Which layer created each array, and what it tells of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from flax import linen as nn

from trainer_linen.boxes import Described, content, is_box, names_of, said
from trainer_linen.bridge import arrays_of, is_bridge
from trainer_linen.infos import Origin, known
from trainer_linen.variables import Keys


def note_origins(origins: dict[Keys, Origin]) -> Any:
    """Return an interceptor that notes each array as the module that creates it sees it."""

    def note(call: Any, args: Any, options: Any, context: Any) -> Any:
        result = call(*args, **options)
        module = context.module
        if module.scope is None:
            return result
        if not is_bridge(module):
            origins.update(_own(module))
        elif context.method_name == "__call__":
            origins.update(arrays_of(module))
        return result

    return note


def describe(module: nn.Module) -> None:
    """Have each parameter that a module has just created say what its layer tells of it."""
    for name, value in _arrays(module.variables.get("params", {})):
        kind, roles = known(module, name, content(value).ndim)
        kind, roles = said(value, "kind") or kind, said(value, "roles") or roles
        blocks = said(value, "blocks") or ()
        box = Described(content(value), names_of(value), kind, roles, blocks)
        module.put_variable("params", name, box)


def _own(module: nn.Module) -> Iterator[tuple[Keys, Origin]]:
    for collection, values in module.variables.items():
        for name, value in _arrays(values):
            origin = Origin(value, *known(module, name, len(content(value).shape)))
            yield (collection, *module.path, name), origin


def _arrays(values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [each for each in values.items() if is_box(each[1]) or hasattr(each[1], "shape")]
