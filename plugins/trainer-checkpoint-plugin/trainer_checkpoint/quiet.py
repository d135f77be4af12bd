"""Orbax reports what it also raises, at length; while it works for us it is silent."""

from __future__ import annotations

import gc
import logging
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from textwrap import shorten
from typing import Any

_ABSL, _ASYNCIO = logging.getLogger("absl"), logging.getLogger("asyncio")


class quiet:
    """Keeps Orbax from logging, and from complaining of its own coroutines after an error."""

    def __enter__(self) -> None:
        self._before = sys.unraisablehook
        sys.unraisablehook = self._ours = _without_abandoned(self._before)
        for logger in (_ABSL, _ASYNCIO):
            logger.addFilter(self)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for logger in (_ABSL, _ASYNCIO):
            logger.removeFilter(self)
        # After an error what was abandoned complains when it ends or is collected.
        if kind is not None:
            _ASYNCIO.addFilter(_is_not_of_orbax)
        elif sys.unraisablehook is self._ours:
            sys.unraisablehook = self._before

    def filter(self, record: logging.LogRecord) -> bool:
        return _is_not_of_orbax(record)


def _is_not_of_orbax(record: logging.LogRecord) -> bool:
    # Of an error that nobody asked for the event loop says of which task it was, where it was
    # raised, or only what TensorStore said: that it was about the database of a checkpoint.
    raised = record.exc_info[2] if record.exc_info else None
    places = [frame.filename for frame in traceback.extract_tb(raised)]
    said = "\n".join([record.pathname, record.getMessage(), *places])
    return "/orbax/" not in said and "OCDBT database" not in said


@contextmanager
def quiet_reading() -> Iterator[None]:
    """Keep Orbax from writing anything to stderr. In one thread at a time only."""
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except BaseException:
            gc.collect()  # "coroutine was never awaited": now, not later
            raise


def reason(error: Exception) -> str:
    """Return why Orbax raised: TensorStore's status, file and fault; else all that led to it."""
    told = [(each, _without_settings(str(each))) for each in _chain(error)]
    for _, said in told:
        if found := _STATUS.match(said):
            return shorten(f"{found[0]}{said[found.end() :].rpartition('local file ')[2]}", 300)
    return shorten(", from ".join(f"{type(each).__name__}: {said}" for each, said in told), 300)


_STATUS = re.compile(r"[A-Z]+(_[A-Z]+)*: ")  # such as NOT_FOUND


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _without_settings(said: str) -> str:
    return re.split(r"See full TensorStore|\[tensorstore_spec", said)[0].strip()


def _without_abandoned(hook: Callable[[Any], Any]) -> Callable[[Any], Any]:
    # When one array cannot be read or written, Orbax closes its event loop and abandons the
    # work on the others.
    def filtered(unraisable: Any) -> None:
        coroutine = getattr(unraisable.object, "cr_code", None)
        of_orbax = coroutine is not None and "orbax" in coroutine.co_filename
        if not of_orbax and str(unraisable.exc_value) != "Event loop is closed":
            hook(unraisable)

    return filtered
