"""Removal by magnitude: the control that looks at weights and at nothing else."""

from __future__ import annotations

from shoal.methods.control import Control
from shoal.search.method import register_method


@register_method("magnitude")
class Magnitude(Control):
    """Removes the rectifier whose layer, or the block whose branch, has the smallest weights."""

    criterion = "l1"
