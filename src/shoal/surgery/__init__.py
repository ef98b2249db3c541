"""How it goes: operations that change a network in place and record themselves in its plan."""

from __future__ import annotations

from shoal.surgery.collapse import collapse_
from shoal.surgery.drop import drop_, zero_out_
from shoal.surgery.linearize import fit_lines, linearize_
from shoal.surgery.lines import FittedLine, LineMoments
from shoal.surgery.merge import merge_
from shoal.surgery.padding import find_movable_paddings, move_paddings_
from shoal.surgery.replay import replay_
from shoal.surgery.report import MergeReport
from shoal.surgery.stretches import find_stretches

__all__ = [
    "FittedLine",
    "LineMoments",
    "MergeReport",
    "collapse_",
    "drop_",
    "find_movable_paddings",
    "find_stretches",
    "fit_lines",
    "linearize_",
    "merge_",
    "move_paddings_",
    "replay_",
    "zero_out_",
]
