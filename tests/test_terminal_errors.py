"""What the trainer and its plugins log is printed in the style of its errors."""

from __future__ import annotations

import logging

import pytest

from trainer_core.terminal.errors import show_warnings


def test_a_warning_of_a_plugin_is_one_line_on_stderr(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = logging.getLogger("trainer_core")
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "propagate", True)
    show_warnings()
    logging.getLogger("trainer_core.some_plugin").warning("two of %d", 3)
    logging.getLogger("trainer_core.some_plugin").info("not this")
    assert capsys.readouterr() == ("", "warning: two of 3\n")
