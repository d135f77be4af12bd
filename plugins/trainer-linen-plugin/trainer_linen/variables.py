"""A module's variables as arrays by their keys in Linen, and the path of each in the state.

A path is that of the module and the array's own name, as in NNX: the collection is no part of it.
Where two collections hold the same name, that of a buffer keeps its collection in front.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from typing import Any, TypeAlias

import jax
from flax.core import unfreeze

from trainer_core.errors import UserError
from trainer_linen.boxes import is_box

# Collections that live within a call.
EPHEMERAL = ("intermediates", "losses", "perturbations", "cache")

# Where Linen keeps an array, the collection first; an item of a bridged nnx.List has an int.
Keys: TypeAlias = tuple[Any, ...]
Path: TypeAlias = tuple[str, ...]


def kept(variables: Any) -> dict[str, Any]:
    """Return the collections that are trained or saved."""
    return {name: tree for name, tree in unfreeze(variables).items() if name not in EPHEMERAL}


def flat(variables: Any) -> Iterator[tuple[Keys, Any]]:
    """Yield what is trained or saved: its keys, and the array or box.

    Raises:
        UserError: a variable holds a list, or anything else without string keys.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(kept(variables), is_leaf=is_box):
        keys: Any = tuple(getattr(entry, "key", None) for entry in path)
        if not all(isinstance(key, (str, int)) for key in keys):
            raise UserError(
                f"{jax.tree_util.keystr(path)}: hold one array in each variable, or a dict of "
                f"arrays with string keys"
            )
        yield keys, leaf


def paths(arrays: Collection[Keys]) -> dict[Keys, Path]:
    """Return the path of each array in the state."""
    # Whole keys count too: a module may have the name of a collection.
    named = [*arrays, *(keys[1:] for keys in arrays)]
    taken = Counter(keys[:end] for keys in named for end in range(1, len(keys) + 1))
    return {
        keys: tuple(map(str, keys[1:] if keys[0] == "params" or taken[keys[1:]] == 1 else keys))
        for keys in arrays
    }
