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
def quiet_log() -> Iterator[None]:
    """Keep Orbax from logging."""
    absl = logging.getLogger("absl")
    absl.addFilter(_is_not_of_orbax)
    try:
        yield
    finally:
        absl.removeFilter(_is_not_of_orbax)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Orbax from writing anything to stderr. In one thread at a time only."""
    asyncio, unraisable = logging.getLogger("asyncio"), sys.unraisablehook
    level = asyncio.level
    asyncio.setLevel(logging.CRITICAL)  # "Task exception was never retrieved"
    sys.unraisablehook = lambda _: None  # "Exception ignored in coroutine"
    try:
        with quiet_log(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                yield
            except BaseException:
                gc.collect()  # abandoned coroutines complain when they are collected
                unraisable = _without_late_reads(unraisable)
                raise
    finally:
        sys.unraisablehook = unraisable
        asyncio.setLevel(level)


def _is_not_of_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname


def _without_late_reads(hook: Callable[[Any], Any]) -> Callable[[Any], Any]:
    # When one array cannot be read, Orbax closes its event loop and abandons the other reads.
    # Each of them complains when it ends or is collected, and that may be later.
    def filtered(unraisable: Any) -> None:
        coroutine = getattr(unraisable.object, "cr_code", None)
        of_orbax = coroutine is not None and "orbax" in coroutine.co_filename
        if not of_orbax and str(unraisable.exc_value) != "Event loop is closed":
            hook(unraisable)

    return filtered
