"""Random walks over the tokens: a batch is a pure function of the seed and the step."""

from __future__ import annotations

from typing import Any

from trainer_core import hookimpl, plugin, setting


@plugin
class Example:
    batch_size: int = setting(16, "of all processes together", unit="sequences")
    length: int = setting(64, "of a sequence", unit="tokens")
    vocab: int = setting(64, "tokens are smaller than this", unit="tokens")
    stride: int = setting(4, "the next token is less than this ahead of the last", unit="tokens")
    held_out: int = setting(2, "how much is never trained on", unit="batches")

    @hookimpl
    def build_data(self, run: Any) -> Any:
        import numpy as np

        from trainer_core import Data

        settings = self

        class Source(Data):
            vocabulary = settings.vocab
            held_out_batches = settings.held_out

            def batch(self, step: int) -> dict[str, Any]:
                return self._walks(0, step)

            def held_out(self, index: int) -> dict[str, Any]:
                return self._walks(1, index)

            def _walks(self, part: int, number: int) -> dict[str, Any]:
                # The seed makes the whole global batch, of which this process takes its rows.
                random = np.random.default_rng([run.settings.seed, part, number])
                size = (settings.batch_size, settings.length + 1)
                walks = random.integers(0, settings.stride, size)
                walks[:, 0] = random.integers(0, settings.vocab, settings.batch_size)
                walks = np.cumsum(walks, axis=1) % settings.vocab
                own = walks[run.rows.start : run.rows.stop].astype(np.int32)
                return {
                    "tokens": own[:, :-1],
                    "targets": own[:, 1:],
                    "weights": np.ones(own[:, 1:].shape, np.float32),
                }

        return Source()
