"""The models that this distribution registers; jax and flax are imported only inside hooks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainer_core.decoder import DecoderSettings
from trainer_core.plugin import hookimpl, plugin

if TYPE_CHECKING:
    from trainer_core.run import Run
    from trainer_core.types import Model


@plugin
class Decoder(DecoderSettings):
    """A decoder language model in Flax Linen: `[model] use = "linen"`."""

    @hookimpl
    def build_state(self, run: Run) -> Model:
        from trainer_linen.decoder import decoder_model

        return decoder_model(self.decoder_config(), run.axes.constrain)
