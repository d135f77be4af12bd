"""A plan as a person reads it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from trainer_core.terminal.figures import amount, exact_size, mesh_axes, short, span
from trainer_core.terminal.page import Page

if TYPE_CHECKING:
    from trainer_core.config import Config
    from trainer_core.plan.answer import Answer
    from trainer_core.plan.knobs import Knob
    from trainer_core.plan.planning import Plan
    from trainer_core.plan.search import Search
    from trainer_core.plan.topology import Topology
    from trainer_core.plan.xla_memory import XlaMemory

_CLASSES = {
    "parameters": "",
    "buffers": "",
    "optimizer": "its state",
    "step": "counters, the key, and what wrappers of the step keep",
    "batch": "",
    "accumulator": "the sum of the microbatches' gradients",
    "gradients": "",
    "activations": "and all else that is temporary",
}


def show(answer: Answer, config: Config, topology: Topology | None) -> None:
    """Print what was found."""
    plan = answer.plan
    page = Page()
    page.line()
    page.rows(_heads(plan, config, topology), style="bold")
    page.line()
    _memory(page, plan)
    page.line()
    page.rows(_work(plan))
    if plan.cost is not None:
        _collectives(page, plan)
    page.line()
    _bound(page, plan)
    page.line()
    page.rows([("took", _took(plan))])
    if answer.knobs:
        _knobs(page, answer.knobs, plan)
    if answer.search is not None:
        _search(page, answer.search)


def _heads(plan: Plan, config: Config, topology: Topology | None) -> list[tuple[str, str]]:
    model = config.chosen["model"].candidate.name
    preset = config.table["model"].get("preset", "")
    named = f"{model} {preset}".strip()
    asked = f"{topology.text}: " if topology is not None else ""
    batch = f"{plan.program.run.batch_size:,} sequences"
    if plan.tokens:
        batch += f", {plan.tokens:,} tokens a step"
    return [
        ("model", f"{named}, {amount(plan.program.param_count)} parameters"),
        ("batch", batch),
        ("devices", f"{asked}{plan.devices:,} x {plan.kind}, {mesh_axes(plan.mesh)}"),
        ("memory", verdict(plan)),
        *_beginning(plan),
    ]


def _beginning(plan: Plan) -> list[tuple[str, str]]:
    """The first state, where to draw it may take more than a step."""
    if plan.beginning <= plan.needed:
        return []
    too_much = plan.available is not None and plan.beginning > plan.available
    return [
        (
            "first state",
            f"up to {exact_size(plan.beginning)} a device while it is drawn: more than a step"
            + (", and than a device has" if too_much else ""),
        )
    ]


def verdict(plan: Plan) -> str:
    """Return whether it fits, and by how much."""
    needed = exact_size(plan.needed)
    if plan.available is None:
        return f"{needed} a device; how much a {plan.kind} device has is not known, so no verdict"
    has = exact_size(plan.available)
    if plan.fits:
        return f"fits: {needed} of {has} a device ({plan.needed / plan.available:.0%})"
    least = "at least " if not plan.memory.activations else ""
    return f"does not fit: {least}{needed} of {has} a device" + (
        f" ({plan.refused})" if plan.refused else ""
    )


def _memory(page: Page, plan: Plan) -> None:
    total = plan.memory.total
    rows = []
    for name, note in _CLASSES.items():
        size = getattr(plan.memory, name)
        if size:
            rows.append([f"{exact_size(size):>10}", f"{size / total:>5.0%}", name, note])
    rows.append([f"{exact_size(total):>10}", "", "in all", ""])
    if plan.xla_memory is not None:
        whole = plan.xla_memory.total
        more = f"{whole / total - 1:+.1%}"
        rows.append([f"{exact_size(whole):>10}", more, "XLA says", _figures(plan.xla_memory)])
    page.table(["a device", "share", "for", ""], rows)


def _figures(memory: XlaMemory) -> str:
    parts = (
        f"arguments {exact_size(memory.arguments)}",
        f"outputs {exact_size(memory.outputs)}",
        f"of these in place {exact_size(memory.aliased)}",
        f"temporaries {exact_size(memory.temporaries)}",
    )
    return ", ".join(parts) + ("" if memory.peak is None else "; this is their peak")


def _work(plan: Plan) -> list[tuple[str, str]]:
    step, model = plan.step, plan.model_flops
    ratio = step.total / model if model else math.nan
    dtypes = ", ".join(
        f"{count / max(1, step.total):.0%} {dtype}" for dtype, count in step.by_dtype.most_common()
    )
    rows = [
        ("flops", f"{operations(model)} a step for the model: its forward pass three times"),
        ("", f"{operations(step.total)} in the step as it is traced ({ratio - 1:+.0%}; {dtypes})"),
    ]
    if plan.xla_flops is not None:
        ours = step.in_loops_once / plan.devices
        rows.append(
            (
                "",
                f"{operations(plan.xla_flops)} a device by XLA, a loop's body counted once; these "
                f"products, counted so: {operations(ours)}",
            )
        )
    if step.unknown:
        rows.append(("", f"not counted: {', '.join(sorted(step.unknown))}"))
    return rows


def _collectives(page: Page, plan: Plan) -> None:
    assert plan.cost is not None
    page.line()
    if not plan.cost.exchanges:
        page.rows([("exchange", "none between devices")])
        return
    page.table(
        ["collective", "count", "bytes", "sent"],
        [
            [kind, f"{sums.count:,}", exact_size(sums.bytes), exact_size(sums.sent)]
            for kind, sums in plan.cost.by_kind.items()
        ],
    )
    for each in sorted(plan.cost.unknown):
        page.line(f"not all is known: {each}")


def _bound(page: Page, plan: Plan) -> None:
    if plan.chip is None:
        page.rows([("time", f"no bound: nothing is known of what a {plan.kind} can do")])
        return
    if plan.roofline is None:
        page.rows([("time", "no bound: the step was not compiled")])
        return
    bound = plan.roofline
    parts = ", ".join(f"{name} {seconds(each)}" for name, each in bound.parts.items())
    unknown = ["the network, whose speed is not known"] if bound.network is None else []
    rows = [
        ("at least", f"{parts} a step"),
        *(("left out", each) for each in unknown),
        (
            "at best",
            f"{seconds(bound.seconds)} a step, bound by {bound.limit}; MFU {bound.mfu:.0%}"
            + (f", {short(plan.tokens_per_second)} tokens/s" if plan.tokens_per_second else ""),
        ),
        ("chip", _chip(plan)),
    ]
    page.rows(rows)


def _knobs(page: Page, found: list[Knob], plan: Plan) -> None:
    available = plan.available or 0
    page.line()
    page.line(("what saves memory", "bold"), ", estimated, the cheapest first")
    page.table(
        ["a device", "saves", "fits", "set"],
        [
            [
                exact_size(each.memory.total),
                exact_size(each.saved),
                "yes" if each.memory.total <= available else "no",
                " ".join(map(shell_word, each.changes)) + (f"  ({each.cost})" if each.cost else ""),
            ]
            for each in found
        ],
        indent=2,
    )
    if all(each.memory.total > available for each in found):
        page.line("  all of them together are not enough: plan for more devices, or larger ones")


def _search(page: Page, found: Search) -> None:
    page.line()
    bounded = any(each.plan.roofline for each in found.ranked)
    order = "the best bound first" if bounded else "without a bound: the least memory first"
    page.line(("search", "bold"), f", {order}")
    rows = []
    for each in [*found.ranked, *found.too_large]:
        bound = each.plan.roofline
        rows.append(
            [
                seconds(bound.seconds) if bound else "",
                f"{bound.mfu:.0%} {bound.limit}" if bound else "",
                exact_size(each.plan.needed),
                {True: "yes", False: "no", None: ""}[each.plan.fits],
                " ".join(map(shell_word, each.changes)) or "as it is",
            ]
        )
    page.table(["a step", "MFU", "a device", "fits", "set"], rows, indent=2)
    for reason, count in found.skipped.most_common():
        page.line(f"  {count} not compiled: {reason}")


def shell_word(change: str) -> str:
    """Return `KEY=VALUE` as it is typed."""
    return f"'{change}'" if "{" in change else change


def _chip(plan: Plan) -> str:
    chip, bound = plan.chip, plan.roofline
    assert chip is not None
    assert bound is not None
    network = f", network {chip.network / 1e9:.3g} GB/s" if chip.network and bound.network else ""
    return (
        f"{chip.title}, a device: {chip.flops / 1e12:,.0f} TFLOP/s bfloat16, HBM "
        f"{chip.memory_bandwidth / 1e9:,.0f} GB/s, links {chip.links / 1e9:,.0f} GB/s one way"
        f"{network} ({chip.source})"
    )


def _took(plan: Plan) -> str:
    return f"{span(plan.build_seconds)} to build and trace, {span(plan.compile_seconds)} to compile"


def operations(number: float) -> str:
    """Return a number of operations: `27.0 P`, `418 M`."""
    for scale, letter in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if number >= scale:
            return f"{number / scale:.3g} {letter}"
    return f"{number:,.0f}"


def seconds(number: float) -> str:
    """Return a time: `3.4 s`, `120 ms`, `45 µs`."""
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if number >= scale:
            return f"{number / scale:.3g} {unit}"
    return f"{number / 1e-9:.3g} ns"
