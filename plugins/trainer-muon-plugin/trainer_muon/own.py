"""Muon for JAX code of one's own, without the trainer."""

from __future__ import annotations

from numbers import Real
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from trainer_core.errors import SettingError
from trainer_core.settings import structure
from trainer_core.types import ParamInfo
from trainer_muon.plan import Placement
from trainer_muon.plugin import Muon
from trainer_muon.transform import Rate, build_muon


def muon(
    learning_rate: Rate,
    params_info: Any,
    *,
    placement: tuple[Mesh | None, Placement] = (None, None),
    **settings: Any,
) -> optax.GradientTransformation:
    """Return Muon for matrices, and AdamW for all else, as one optax transformation.

    Args:
        learning_rate: a number, or a schedule of updates made.
        params_info: a `ParamInfo` for each parameter, in their tree; `describe` makes it.
        placement: of the parameters on a mesh, from `placement_of`; by default each array is
            whole, or, on a mesh of Auto axes, XLA decides how the work is spread.
        **settings: as in `[optimizer]`, see `trainer_muon.plugin.Muon`.

    Raises:
        TypeError: a learning rate that is none, something else than a ParamInfo.
        ValueError: settings, or a parameter, that do not fit; see `trainer_muon.plan.make_plan`.
    """
    if not callable(learning_rate) and not isinstance(learning_rate, Real | jax.Array):
        raise TypeError(
            f"muon: learning_rate is a {type(learning_rate).__name__}; expected a number, or a "
            f"schedule of updates made"
        )
    leaves = [None] if params_info is None else jax.tree.leaves(params_info)
    for leaf in leaves:
        if not isinstance(leaf, ParamInfo):
            raise TypeError(
                f"muon: params_info holds a {type(leaf).__name__}; expected a ParamInfo for each "
                f"parameter, from trainer_muon.describe(params, rules)"
            )
    chosen: Muon = structure(Muon, settings, "muon:", lambda key: "an argument").instance
    try:
        chosen.check({})
    except SettingError as error:
        raise ValueError(f"muon: {error.key}: {error}") from None
    mesh, lies = placement
    return build_muon(learning_rate, params_info, chosen, lies, mesh)
