"""Merging: what has become linear becomes fewer layers, exactly, and proved to change nothing."""

from __future__ import annotations

from shoal.merge.merge import merge_
from shoal.merge.padding import find_movable_paddings, move_paddings_
from shoal.merge.report import MergeReport

__all__ = ["MergeReport", "find_movable_paddings", "merge_", "move_paddings_"]
