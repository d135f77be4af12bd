"""Orbax reports what it also raises, at length; while it works for us it is silent."""

from __future__ import annotations

import gc
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


def _is_not_of_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname


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
    """Keep Orbax from writing anything to stderr. For the main thread only."""
    asyncio, hook = logging.getLogger("asyncio"), sys.unraisablehook
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
                raise
    finally:
        sys.unraisablehook = hook
        asyncio.setLevel(level)
