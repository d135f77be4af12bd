"""Under which names TensorBoard groups metrics well: it folds what has the same first part."""

from __future__ import annotations

_GROUPS = {
    "grad_norm": "optimizer",
    "learning_rate": "optimizer",
    "loss_spikes": "optimizer",
    "skipped_steps": "optimizer",
    "tokens": "speed",
    "tokens_per_second": "speed",
    "seconds": "speed",
}


def tag_of(metric: str) -> str:
    """Return the name of a metric in TensorBoard."""
    if metric.startswith("eval_"):
        return f"eval/{metric.removeprefix('eval_')}"
    # A name without a slash is a group of its own: `loss` stands with `loss/TERM`.
    if metric == "loss" or "/" in metric:
        return metric
    return f"{_GROUPS.get(metric, 'metrics')}/{metric}"
