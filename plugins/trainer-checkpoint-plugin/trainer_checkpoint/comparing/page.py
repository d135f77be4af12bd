"""A report as a page: the settings that differ, the steps, and where the runs part."""

from __future__ import annotations

from collections.abc import Mapping

from trainer_checkpoint.comparing.metrics import chosen, difference, only_in
from trainer_checkpoint.comparing.report import SHOWN, Report, listed
from trainer_checkpoint.comparing.side import Side, differing_settings
from trainer_checkpoint.comparing.states import Compared
from trainer_core.terminal import figures
from trainer_core.terminal.page import Page

_ROWS = 20  # of the steps, and of the settings


def print_out(report: Report, is_kept: bool) -> None:
    """Print a report.

    Args:
        report: what to print.
        is_kept: whether both runs stay on disk.
    """
    page = Page()
    page.rows([("A", _named(report.a)), ("B", _named(report.b))])
    settings = differing_settings(report.a, report.b)
    if settings:
        page.line()
        rows = [(key, *both) for key, both in settings.items()]
        page.table(("setting", "A", "B"), rows[:_ROWS])
        if len(rows) > _ROWS:
            page.line((f"and {len(rows) - _ROWS} more", "dim"))
    if report.steps:
        page.line()
        _print_steps(page, report)
    page.line()
    page.rows(_findings(report, is_kept))


def _named(side: Side) -> str:
    if side.step < side.planned:
        return f"{side.name}, {side.step:,} of {figures.steps(side.planned)}"
    return f"{side.name}, {figures.steps(side.step)}"


def _print_steps(page: Page, report: Report) -> None:
    a, b = report.a.metrics, report.b.metrics
    first = report.first.step if report.first is not None else None
    shown = chosen(report.steps, first, _ROWS)
    names = ("loss", "grad")
    page.table(
        ("step", *(f"{name} {which}" for name in names for which in ("A", "B", "apart"))),
        [
            (f"{step:,}", *(cell for name in SHOWN for cell in _cells(a[step], b[step], name)))
            for step in shown
        ],
    )
    if len(shown) < len(report.steps):
        page.line((f"{len(shown)} of {figures.steps(len(report.steps))}; --json has all", "dim"))


def _cells(a: Mapping[str, float], b: Mapping[str, float], name: str) -> list[str]:
    numbers = [f"{each[name]:.8g}" if name in each else "-" for each in (a, b)]
    return [*numbers, _apart(difference(a[name], b[name])) if name in a and name in b else "-"]


def _findings(report: Report, is_kept: bool) -> list[tuple[str, str]]:
    a, b = report.a, report.b
    rows = [
        (f"only in {which}", ", ".join(names))
        for which, names in (("A", only_in(a, b, report.steps)), ("B", only_in(b, a, report.steps)))
        if names
    ]
    if report.steps:
        rows += [
            (f"only in {which}", listed(only))
            for which, mine, its in (("A", a, b), ("B", b, a))
            if (only := sorted(mine.metrics.keys() - its.metrics.keys()))
        ]
    rows.append(("metrics", _metrics(report)))
    rows += [(f"state {each.step:,}", _state(each, report)) for each in report.states]
    if not report.states:
        rows.append(("states", f"not compared: {_why_no_state(a, b)}"))
    elif report.states[-1].apart:
        at = (str(side.directory / f"checkpoints/{report.states[-1].step}") for side in (a, b))
        diff = f"trainer checkpoint diff {' '.join(at)}"
        rows.append(("all arrays", diff if is_kept else "--into DIRECTORY keeps the runs"))
    rows.append(("result", _result(report)))
    return rows


def _metrics(report: Report) -> str:
    first = report.first
    if not report.steps:
        return "not compared: there is no step that both reported"
    if first is None:
        count = figures.steps(len(report.steps))
        return f"equal{_within(report)} at {count}: {', '.join(report.names)}"
    return (
        f"step {first.step:,} is the first that differs: {first.metric} {first.a:.9g} in A, "
        f"{first.b:.9g} in B, {_apart(first.difference)} apart"
    )


def _state(each: Compared, report: Report) -> str:
    if not each.apart:
        return f"equal{_within(report)}: {each.arrays} arrays"
    first = each.apart[0]
    by = first.note if first.largest is None else f"by at most {_apart(first.largest)}"
    count = f"{len(each.apart)} of {each.arrays} arrays differ"
    return f"{first.path} is the first path that differs, {by}; {count}"


def _why_no_state(a: Side, b: Side) -> str:
    without = [side.name for side in (a, b) if not side.saved]
    if without:
        return f"no checkpoint of these steps in {' and '.join(without)}"
    return f"A saved {listed(a.saved)}, B {listed(b.saved)}"


def _result(report: Report) -> str:
    if report.differ:
        return f"they differ{f' by more than {report.tolerance:g}' if report.tolerance else ''}"
    if report.largest:
        return f"equal within {report.tolerance:g}: at most {_apart(report.largest)} apart"
    return "equal, bit for bit" if report.has_same_bits else "equal, but for the sign of zeros"


def _within(report: Report) -> str:
    return f" within {report.tolerance:g}" if report.tolerance else ""


def _apart(value: float) -> str:
    return f"{value:.1e}" if value else "0"
