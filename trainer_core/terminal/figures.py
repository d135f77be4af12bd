"""Numbers as a person reads them: few digits, fixed widths, units that say what they count."""

from __future__ import annotations

import math
from collections.abc import Mapping

_SCALES = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))


def short(number: float) -> str:
    """Return three digits and a scale: `987`, `12.3k`, `1.23M`, `8.03B`."""
    # 999.6 would be written as 1e+03 by three digits; it belongs to the next scale.
    for scale, letter in _SCALES:
        if abs(number) >= scale * 0.9995:
            return f"{_three_digits(number / scale)}{letter}"
    return f"{number:.0f}" if float(number).is_integer() else _three_digits(number)


def amount(number: float) -> str:
    """Return a count in running text: `820,608`, `1.06 M`, `8.03 B`."""
    if abs(number) < 999_500:
        return f"{number:,.0f}"
    text = short(number)
    return f"{text[:-1]} {text[-1]}"


def size(number: float) -> str:
    """Return bytes: `512 B`, `64 KiB`, `1.5 MiB`, `96.5 GiB`."""
    scale, unit = _bytes_scale(number)
    return f"{number / scale:.1f}".removesuffix(".0") + f" {unit}"


def exact_size(number: float) -> str:
    """Return bytes with two decimals, always as many: `512 B`, `64.00 KiB`, `96.47 GiB`."""
    scale, unit = _bytes_scale(number)
    return f"{number / scale:.{0 if scale == 1 else 2}f} {unit}"


def mesh_axes(sizes: Mapping[str, int]) -> str:
    """Return the sizes of mesh axes: `data 2 x fsdp 4`."""
    return " x ".join(f"{name} {size}" for name, size in sizes.items())


def steps(number: int) -> str:
    """Return `1 step`, `1,000 steps`."""
    return f"{number:,} step{'s' * (number != 1)}"


def duration(seconds: float) -> str:
    """Return a time span: `0:42`, `1:02:03`, `2 d 03:04`."""
    whole = max(0, round(seconds))
    days, rest = divmod(whole, 86_400)
    hours, rest = divmod(rest, 3600)
    minutes, rest = divmod(rest, 60)
    if days:
        return f"{days} d {hours:02}:{minutes:02}"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def span(seconds: float) -> str:
    """Return how long something took: `0.24 s`, `8.1 s`, `1:12`."""
    if seconds < 59.5:
        return f"{_three_digits(seconds)} s" if seconds < 10 else f"{seconds:.0f} s"
    return duration(seconds)


def loss(value: float) -> str:
    """Return a loss: four decimals, or five digits where it is large."""
    if not math.isfinite(value):
        return str(value)
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:.4e}"


def scientific(value: float) -> str:
    """Return a number whose size is what matters, always as wide: `8.11e-04`."""
    return f"{value:.2e}"


def plain(value: float) -> str:
    """Return any other metric: whole numbers whole, else four digits."""
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}"


def norm(value: float) -> str:
    """Return a gradient norm, in five characters where that is possible: `0.412`, `12.35`."""
    if not math.isfinite(value):
        return str(value)
    if not 1e-3 <= value < 999.95:
        return f"{value:.1e}"
    digits = 3 if value < 9.9995 else 2 if value < 99.995 else 1
    return f"{value:.{digits}f}"


def _bytes_scale(number: float) -> tuple[int, str]:
    scales = ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))
    # 1023.96 KiB would be written as 1024.
    return next((each for each in scales if number >= each[0] * 0.99995), (1, "B"))


def _three_digits(number: float) -> str:
    digits = 2 if abs(number) < 9.995 else 1 if abs(number) < 99.95 else 0
    return f"{number:.{digits}f}"
