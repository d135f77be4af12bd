"""Text as a data source: bytes are the tokens."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer_core.defaults.corpus import VOCABULARY
from trainer_core.defaults.windows import Windows
from trainer_core.types import Data


class TextData(Data):
    """Batches of windows of a text, whose tokens are its bytes in UTF-8.

    Args:
        windows: which windows make which batch.
    """

    vocabulary = VOCABULARY

    def __init__(self, windows: Windows) -> None:
        self.windows = windows

    @cached_property
    def held_out_batches(self) -> int:  # type: ignore[override]
        return self.windows.held_out_batches

    @cached_property
    def summary(self) -> dict[str, str]:  # type: ignore[override]
        return self.windows.summary

    def batch(self, step: int) -> dict[str, NDArray[Any]]:
        return self.windows.batch(step)

    def held_out(self, index: int) -> dict[str, NDArray[Any]]:
        return self.windows.held_out_batch(index)

    def encode(self, text: str) -> NDArray[np.int32]:
        # Bytes of a command line that are not UTF-8 come as surrogates, and leave as they came.
        return np.frombuffer(text.encode("utf-8", "surrogateescape"), np.uint8).astype(np.int32)

    def decode(self, tokens: NDArray[Any]) -> str:
        # 0xFF is in no UTF-8 text: a token that is no byte is shown as one that cannot be read.
        known = np.where((tokens >= 0) & (tokens < VOCABULARY), tokens, 0xFF)
        return known.astype(np.uint8).tobytes().decode("utf-8", errors="replace")
