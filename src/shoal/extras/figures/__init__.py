"""Figures of criteria and of runs. They need matplotlib."""

from __future__ import annotations

from shoal.extras.figures.blocks import criteria_map, l1_by_stage
from shoal.extras.figures.canvas import check_path
from shoal.extras.figures.curves import front, removed
from shoal.extras.figures.heat import score_map

__all__ = ["check_path", "criteria_map", "front", "l1_by_stage", "removed", "score_map"]
