"""The models that this distribution registers; jax and flax are imported only inside hooks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

from trainer_core.decoder import DecoderSettings
from trainer_core.plugin import hookimpl, plugin, setting

if TYPE_CHECKING:
    from trainer_core.run import Run
    from trainer_core.types import Model


@plugin
class Decoder(DecoderSettings):
    """A decoder language model in Flax NNX: `[model] use = "nnx"`."""

    @hookimpl
    def build_state(self, run: Run) -> Model:
        from trainer_nnx.decoder import decoder_model

        return decoder_model(self.decoder_config(), run.axes.constrain)


@plugin
class Module:
    """Your own `nnx.Module`: `[model] use = "nnx-module"`."""

    module: str = setting(help="where your class is: package.module:Class")
    arguments: dict[str, Any] = setting(
        attrs.Factory(dict), "the keyword arguments of its constructor, beside rngs"
    )
    coefficients: dict[str, float] = setting(
        attrs.Factory(dict), "by which each term counts in the loss; 1 where it is not named"
    )

    @hookimpl
    def build_state(self, run: Run) -> Model:
        from trainer_nnx.load import constructor
        from trainer_nnx.module import as_model

        return as_model(
            constructor(self.module, self.arguments),
            constrain=run.axes.constrain,
            coefficients=self.coefficients,
        )
