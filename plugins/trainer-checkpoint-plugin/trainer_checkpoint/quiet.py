"""Orbax reports what it also raises, at length; while it works for us it is silent."""

from __future__ import annotations

import gc
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Orbax from logging, and from complaining of its own coroutines after an error."""
    absl, before = logging.getLogger("absl"), sys.unraisablehook
    absl.addFilter(_is_not_of_orbax)
    sys.unraisablehook = ours = _without_abandoned(before)
    try:
        yield
        # Not after an error: what was abandoned complains when it ends or is collected.
        if sys.unraisablehook is ours:
            sys.unraisablehook = before
    finally:
        absl.removeFilter(_is_not_of_orbax)


@contextmanager
def quiet_reading() -> Iterator[None]:
    """Keep Orbax from writing anything to stderr. In one thread at a time only."""
    asyncio = logging.getLogger("asyncio")
    level = asyncio.level
    asyncio.setLevel(logging.CRITICAL)  # "Task exception was never retrieved"
    try:
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                yield
            except BaseException:
                gc.collect()  # "coroutine was never awaited": now, not later
                raise
    finally:
        asyncio.setLevel(level)


def _is_not_of_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname


def _without_abandoned(hook: Callable[[Any], Any]) -> Callable[[Any], Any]:
    # When one array cannot be read or written, Orbax closes its event loop and abandons the
    # work on the others.
    def filtered(unraisable: Any) -> None:
        coroutine = getattr(unraisable.object, "cr_code", None)
        of_orbax = coroutine is not None and "orbax" in coroutine.co_filename
        if not of_orbax and str(unraisable.exc_value) != "Event loop is closed":
            hook(unraisable)

    return filtered
