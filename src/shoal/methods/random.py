"""Removal by chance: the control that belongs beside every method."""

from __future__ import annotations

from shoal.methods.control import Control
from shoal.search.method import register_method


@register_method("random")
class Random(Control):
    """Removes rectifiers, or blocks, in an order that follows from the seed alone."""

    criterion = "random"
