"""JAX's cache of compiled programs: where it is, and that what is torn in it does not stay."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import Any

logger = logging.getLogger("trainer_core")
_UNREADABLE = "Error reading persistent compilation cache entry"


def use_compile_cache() -> None:
    """Keep compiled programs in the user's cache folder, unless JAX was told of another."""
    import jax

    if getattr(jax.config, "jax_compilation_cache_dir", None) is not None:
        return
    home = Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")
    folder = (
        Path(os.environ.get("XDG_CACHE_HOME") or home) / "trainer-core" / f"jax-{jax.__version__}"
    )
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


@contextmanager
def without_torn_entries() -> Iterator[None]:
    """Delete, while entered, each entry of the cache that JAX cannot read, and say so.

    A process that is killed while it writes one leaves a part of it. JAX writes none where one is:
    it would warn, and compile, in each run.
    """
    as_before = warnings.showwarning

    def show(message: Warning | str, *rest: Any, **named: Any) -> None:
        removed = _remove(_key()) if str(message).startswith(_UNREADABLE) else []
        if removed:
            logger.warning("this entry of the compile cache was torn, and is deleted: %s", *removed)
        else:
            as_before(message, *rest, **named)

    warnings.showwarning = show
    try:
        yield
    finally:
        if warnings.showwarning is show:
            warnings.showwarning = as_before


def _key() -> str:
    """Return the key of the entry that JAX is reading: its warning says only of which program."""
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        key = frame.f_locals.get("cache_key") if "jax" in frame.f_code.co_filename else None
        if isinstance(key, str):
            return key
    return ""


def _remove(key: str) -> list[Path]:
    import jax

    folder = str(getattr(jax.config, "jax_compilation_cache_dir", None) or "")
    if not key or not folder or "://" in folder:
        return []
    removed = []
    for path in sorted(Path(folder).glob(f"{escape(key)}*")):
        try:
            path.unlink()
        except OSError:
            continue
        removed.append(path)
    return removed[:1]
