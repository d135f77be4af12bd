"""The models that this distribution registers; jax and flax are imported only inside hooks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

from trainer_core.decoder import DecoderSettings
from trainer_core.plugin import hookimpl, plugin, setting

if TYPE_CHECKING:
    import jax

    from trainer_core.run import Run
    from trainer_core.types import Model


@plugin
class Decoder(DecoderSettings):
    """A decoder language model in Flax Linen: `[model] use = "linen"`."""

    @hookimpl
    def build_state(self, run: Run) -> Model:
        from trainer_linen.decoder import decoder_model

        return decoder_model(self.decoder_config(), run.axes.constrain)


@plugin
class Module:
    """Your own `nn.Module`: `[model] use = "linen-module"`."""

    module: str = setting(help="where your class is: package.module:Class")
    arguments: dict[str, Any] = setting(
        attrs.Factory(dict), "the keyword arguments of its constructor"
    )
    coefficients: dict[str, float] = setting(
        attrs.Factory(dict), "by which each term counts in the loss; 1 where it is not named"
    )
    rngs: list[str] = setting(
        attrs.Factory(lambda: ["dropout"]), "the names of its random streams, beside params"
    )

    @hookimpl
    def build_state(self, run: Run, batch: dict[str, jax.ShapeDtypeStruct]) -> Model:
        from flax import linen as nn

        from trainer_core.user_module import load_target
        from trainer_linen.module import as_model

        target = load_target(self.module, self.arguments, given=("parent", "name"), kind=nn.Module)
        return as_model(
            target(**self.arguments),
            batch,
            constrain=run.axes.constrain,
            coefficients=self.coefficients,
            rngs=self.rngs,
        )
