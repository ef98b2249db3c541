"""How it goes: operations that change a network in place and record themselves in its plan."""

from __future__ import annotations

from shoal.surgery.collapse import collapse_
from shoal.surgery.drop import drop_, zero_out_
from shoal.surgery.linearize import FittedLine, LineMoments, fit_lines, linearize_, replace_
from shoal.surgery.norm_lines import norm_lines
from shoal.surgery.rectifiers import swap_rectifiers_

__all__ = [
    "FittedLine", "LineMoments", "collapse_", "drop_", "fit_lines", "linearize_", "norm_lines",
    "replace_", "swap_rectifiers_", "zero_out_",
]  # fmt: skip
