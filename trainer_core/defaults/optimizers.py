"""`[optimizer]`: adamw, sgd, and any optax transformation by its import path."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import attrs
from attrs.validators import and_, ge, lt

from trainer_core.errors import UserError, kind_of
from trainer_core.plugin import hookimpl, plugin, setting
from trainer_core.settings import in_float32

if TYPE_CHECKING:
    import optax

    from trainer_core.types import Model

Schedule = Callable[[Any], Any]
_FRACTION = and_(ge(0), lt(1))
# Matrices decay; what scales, shifts or places (norms, biases, positions) does not.
_DECAYED = ("matrix", "embedding", "unembedding", "router", "conv")


@plugin
class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019)."""

    beta1: float = setting(0.9, "decay of the mean of the gradient", check=_FRACTION)
    beta2: float = setting(0.95, "decay of the mean of its square", check=_FRACTION)
    epsilon: float = setting(
        1e-8, "added to the root of the mean square", check=and_(ge(0), in_float32)
    )
    weight_decay: float = setting(
        0.1,
        "of matrices and embeddings, times the learning rate",
        check=and_(ge(0), in_float32),
    )

    @hookimpl
    def build_optimizer(
        self, model: Model, learning_rate: Schedule
    ) -> optax.GradientTransformation:
        import jax
        import optax

        return optax.adamw(
            learning_rate,
            b1=self.beta1,
            b2=self.beta2,
            eps=self.epsilon,
            weight_decay=self.weight_decay,
            mask=jax.tree.map(lambda info: info.kind in _DECAYED, model.params),
        )

    @hookimpl
    def describe_optimizer(self, model: Model) -> dict[str, dict[str, Any]]:
        import jax

        return {
            info.path: {
                "rule": "adamw",
                "decay": self.weight_decay if info.kind in _DECAYED else 0.0,
            }
            for info in jax.tree.leaves(model.params)
        }


@plugin
class SGD:
    """Stochastic gradient descent with momentum."""

    momentum: float = setting(0.9, "decay of the velocity; 0: none", check=_FRACTION)
    nesterov: bool = setting(False, "look one step ahead")

    @hookimpl
    def build_optimizer(self, learning_rate: Schedule) -> optax.GradientTransformation:
        import optax

        return optax.sgd(learning_rate, momentum=self.momentum or None, nesterov=self.nesterov)


@plugin
class Optax:
    """Any function of optax, or of your own, that returns a GradientTransformation.

    One that has a parameter `learning_rate` is given the schedule; one that has a parameter
    `infos` a ParamInfo for each parameter, in their tree, for masks and labels by kind.
    """

    transform: str = setting(help='an import path, such as "optax.contrib:ademamix"')
    arguments: dict[str, Any] = setting(
        attrs.Factory(dict), "its keyword arguments, besides the learning rate and infos"
    )

    @hookimpl
    def build_optimizer(
        self, model: Model, learning_rate: Schedule
    ) -> optax.GradientTransformation:
        import inspect

        import optax

        from trainer_core.imports import check_makes, load_object

        what = "[optimizer] transform"
        make = load_object(self.transform, what)
        kind = optax.GradientTransformation
        check_makes(make, kind, self.transform, what, packages=["optax"])
        try:
            offered = {"learning_rate": learning_rate, "infos": model.params}
            takes = inspect.signature(make).parameters.keys() & offered
            made = make(**{name: offered[name] for name in takes}, **self.arguments)
        except (TypeError, ValueError) as error:
            raise UserError(
                f'[optimizer] transform = "{self.transform}" with arguments {self.arguments}: '
                f"{error}",
                "optimizer.transform",
                "optimizer.arguments",
            ) from error
        if not isinstance(made, kind):
            raise UserError(
                f'[optimizer] transform = "{self.transform}" returned {kind_of(made)}; '
                f"expected an optax.GradientTransformation",
                "optimizer.transform",
            )
        if "learning_rate" in takes:
            return made
        return optax.chain(made, optax.scale_by_learning_rate(learning_rate))
