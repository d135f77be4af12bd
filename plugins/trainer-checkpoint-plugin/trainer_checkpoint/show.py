"""`trainer checkpoint show`: what stands in a checkpoint."""

from __future__ import annotations

from typing import Any

from trainer_checkpoint.stored import Stored
from trainer_core.recipe import flatten
from trainer_core.settings import shown
from trainer_core.terminal.figures import short
from trainer_core.terminal.page import Page


def as_json(found: Stored) -> dict[str, Any]:
    """Return what is known of a checkpoint as JSON values."""
    meta = found.meta or {}
    return {
        "path": str(found.path),
        "step": meta.get("step"),
        "digest": meta.get("digest"),
        "versions": meta.get("versions", {}),
        "config": meta.get("config", {}),
        "arrays": {
            path: {"shape": list(leaf.shape), "dtype": leaf.dtype, "sharding": leaf.spec}
            for path, leaf in found.leaves.items()
        },
    }


def print_out(found: Stored) -> None:
    """Print it as tables."""
    page, leaves = Page(), found.leaves
    total = sum(leaf.size for leaf in leaves.values())
    rows = [("checkpoint", str(found.path)), ("arrays", f"{len(leaves)}, {short(total)}B")]
    if found.meta is None:
        rows.append(("written by", "other code"))
    else:
        rows.insert(1, ("step", f"{found.meta['step']:,}"))
        rows.append(("digest", str(found.meta["digest"])))
        versions = found.meta["versions"].items()
        rows.append(("written by", ", ".join(f"{name} {version}" for name, version in versions)))
    page.rows(rows)
    page.line()
    page.table(
        ("dtype", "shape", "lies over", "path"),
        [
            (leaf.dtype, " x ".join(map(str, leaf.shape)) or "scalar", leaf.spec or "-", path)
            for path, leaf in sorted(leaves.items())
        ],
    )
    if found.meta is not None:
        page.line()
        page.rows([(key, shown(value)) for key, value in flatten(found.meta["config"])])
