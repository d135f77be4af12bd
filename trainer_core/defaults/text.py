"""The `text` data source: trains on files as they are, with bytes as tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from attrs.validators import and_, ge, lt

from trainer_core.defaults.corpus import VOCABULARY, path_problem, wrong
from trainer_core.defaults.windows import Windows
from trainer_core.errors import SettingError
from trainer_core.plugin import hookimpl, plugin, setting

if TYPE_CHECKING:
    from trainer_core.run import Run
    from trainer_core.types import Data


@plugin
class Text:
    """Windows of a text, each once an epoch, in a seeded order; the tail is held out."""

    batch_size: int = setting(
        default=16, help="of all processes together", unit="sequences", check=ge(1)
    )
    length: int = setting(default=128, help="of a sequence", unit="tokens", check=ge(1))
    path: str | None = setting(
        default=None,
        help="a file, a folder or a glob; Python's own standard library where not given",
    )
    held_out: float = setting(
        default=0.05,
        help="the part kept for evaluation; 0: none",
        unit="of 1",
        check=and_(ge(0), lt(1)),
    )

    def check(self, config: Mapping[str, Any]) -> None:
        """Find at once, without jax, what would not train."""
        if problem := path_problem(self.path):
            raise SettingError("path", problem)
        vocab, context = (config["model"].get(key) for key in ("vocab", "context"))
        if isinstance(vocab, int) and vocab < VOCABULARY:
            raise SettingError(
                "model.vocab", f"bytes are {VOCABULARY} tokens; set model.vocab={VOCABULARY}"
            )
        if isinstance(context, int) and context < self.length:
            raise SettingError(
                "model.context",
                f"[data] length = {self.length} is longer; set data.length={context}, or "
                f"model.context={self.length}",
            )

    @hookimpl
    def build_data(self, run: Run) -> Data:
        # Settings are read without jax, which every type that crosses a hook comes with.
        from trainer_core.defaults.text_data import TextData

        if problem := path_problem(self.path):
            raise wrong(self.path, problem)
        rows = run.rows
        return TextData(
            Windows(
                path=self.path,
                length=self.length,
                batch_size=self.batch_size,
                held_out=self.held_out,
                seed=run.settings.seed,
                process=rows.start // len(rows),
                processes=self.batch_size // len(rows),
            )
        )
