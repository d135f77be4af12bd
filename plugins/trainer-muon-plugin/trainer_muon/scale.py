"""By what an orthogonal update is multiplied, so that one learning rate suits every shape."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from trainer_muon.view import View

if TYPE_CHECKING:
    from trainer_muon.plugin import Muon

_RMS = 0.2


def scale_of(view: View, settings: Muon) -> float:
    """Return the factor of a matrix that maps `in` to `out` features.

    - `moonlight`: rms · √max(in, out). An orthogonal update has the root mean square
      1 / √max(in, out); this gives it that of AdamW's updates, so that AdamW's learning rate and
      weight decay serve both (Liu et al., arXiv:2502.16982, 2025, section 2.2).
    - `keller_jordan`: √max(1, out / in) (github.com/KellerJordan/Muon, 2024).
    - `spectral`: √(out / in), by which the update has spectral norm 1 from root mean square to
      root mean square (Bernstein and Newhouse, arXiv:2409.20325, 2024).
    """
    size_in, size_out = view.size_in, view.size_out
    if not size_in or not size_out:
        return 1.0
    if settings.scale == "moonlight":
        return (settings.rms or _RMS) * math.sqrt(max(size_in, size_out))
    if settings.scale == "keller_jordan":
        return math.sqrt(max(1.0, size_out / size_in))
    return math.sqrt(size_out / size_in)
