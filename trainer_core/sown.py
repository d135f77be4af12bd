"""Terms of the loss that a module sows, far from where the loss is put together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from trainer_core.errors import UserError
from trainer_core.loss import MODEL, described
from trainer_core.types import Term

COLLECTION = "losses"


def sown_terms(variables: Mapping[str, Any], name: str) -> dict[str, Term]:
    """Return the terms of the collection `losses`, by the names under which they were sown.

    Modules, and layers of a scan, that sow the same name add to one term: its sum is that of
    their sums, its weight that of their weights, and so its loss their weighted mean.

    Args:
        variables: what a call left in its collections.
        name: of the module's class.

    Raises:
        UserError: what was sown is no Term.
    """
    found: dict[str, Term] = {}
    leaves = jax.tree_util.tree_leaves_with_path(
        variables.get(COLLECTION, {}), is_leaf=lambda leaf: isinstance(leaf, Term)
    )
    for path, leaf in leaves:
        keys = [str(entry.key) for entry in path if hasattr(entry, "key")]
        if not isinstance(leaf, Term):
            raise UserError(
                f"{name} sows {'/'.join(keys)} into {COLLECTION}: {described(leaf)}; sow "
                f"Term(sum, weight), with a sum over examples and the weight to divide it by",
                *MODEL,
            )
        before = found.get(keys[-1], Term(0.0, 0.0))
        found[keys[-1]] = Term(
            before.sum + jnp.sum(leaf.sum, dtype=jnp.float32),
            before.weight + jnp.sum(leaf.weight, dtype=jnp.float32),
        )
    return found


def together(terms: dict[str, Term], sown: dict[str, Term], name: str) -> dict[str, Term]:
    """Return the terms that `terms` returned, and those that were sown.

    Raises:
        UserError: a name is used for both.
    """
    both = sorted(set(terms) & set(sown))
    if both:
        raise UserError(
            f"{name}: the term {both[0]!r} is returned by terms and sown into {COLLECTION} too; "
            f"rename one",
            *MODEL,
        )
    return terms | sown
