"""What the trainer and its plugins log is printed in the style of its errors."""

from __future__ import annotations

import logging

import pytest

from trainer_core.terminal.errors import say_error, show_warnings
from trainer_core.terminal.page import Page, terminal_console


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Warnings are printed as a command does it."""
    logger = logging.getLogger("trainer_core")
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "propagate", True)
    show_warnings()


@pytest.mark.usefixtures("shown")
def test_a_warning_of_a_plugin_is_one_line_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    logging.getLogger("trainer_core.some_plugin").warning("two of %d", 3)
    logging.getLogger("trainer_core.some_plugin").info("not this")
    assert capsys.readouterr() == ("", "warning: two of 3\n")


ACTING = "\x1b]0;mine\x07 \x9b2J \x7f \r\u202e"
WRITTEN = r"\x1b]0;mine\x07 \x9b2J \x7f \r\u202e"


@pytest.mark.usefixtures("shown")
def test_nothing_in_an_error_or_a_warning_acts_on_the_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logging.getLogger("trainer_core.some_plugin").warning("of %s", ACTING)
    say_error(f"no {ACTING}\n\tbut this")
    said = capsys.readouterr().err
    assert said == f"warning: of {WRITTEN}\nerror: no {WRITTEN}\n\tbut this\n"


@pytest.mark.parametrize("is_terminal", [True, False])
def test_nor_in_a_table(capsys: pytest.CaptureFixture[str], is_terminal: bool) -> None:
    page = Page(terminal_console() if is_terminal else None)
    page.rows([(ACTING, ACTING)])
    page.table(("name", "state"), [(ACTING, "whole"), ("other", ACTING)])
    page.line("a ", (ACTING, ""))
    said = capsys.readouterr().out
    assert said.count(WRITTEN) == 5
    assert not set("\x07\x7f\x9b\r\u202e") & set(said)
    assert "\x1b]" not in said
