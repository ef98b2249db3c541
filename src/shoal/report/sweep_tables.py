"""A sweep's cells in a table: how far each has come, and why one failed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from shoal.report.table import UNITS, Cell, Column, Quantity, Row, Table, duration, unit_of
from shoal.sweep import CellState

_COLUMNS = (
    Column("cell", align="left"),
    Column("state", align="left"),
    Column("step", meaning="the last finished one; 0 is the dense network", priority=3),
    Column("removed", meaning="of what the method counts: rectifiers or blocks", priority=1),
    Column("validation", meaning="quality on validation data: of the result, or of the last step"),
    Column("dense / this", "×", meaning="latency of dense over this: above 1 is faster"),
    Column("time", "s", meaning="of all steps; while it runs, of this call", priority=2),
)
_TONES: dict[str, Any] = {"running": "strong", "waiting": "faint"}


def cells_table(cells: Sequence[CellState], title: str = "cells") -> Table:
    """Return the table of a sweep's cells, a row each."""
    rows = (Row(_cells(cell), tone=_TONES.get(cell.state, "")) for cell in cells)
    return Table(title, _COLUMNS, tuple(rows))


def cell_title(cell: CellState) -> str:
    """Return a cell's name as people read it, without its digest."""
    return cell.name.rpartition("-")[0] or cell.name


def state_words(cell: CellState) -> str:
    """Return a cell's state with the reason, or the number of the try."""
    if cell.failed:
        return f"{cell.state}: {cell.failed}"
    return f"{cell.state}, try {cell.tries}" if cell.tries > 1 else cell.state


def count_words(cells: Sequence[CellState]) -> str:
    """Return how many cells are in which state: "3 done, 1 failed, 2 waiting"."""
    counts = Counter(cell.state for cell in cells)
    order = ("done", "failed", "running", "waiting")
    return ", ".join(f"{counts[state]} {state}" for state in order if counts[state])


def quality_words(cell: CellState) -> str:
    """Return the quality on validation data in its unit, or a dash."""
    found = cell.glance
    return "–" if found is None else UNITS[unit_of(found.quality_unit)](found.quality)


def removed_words(cell: CellState) -> str:
    """Return how many are gone, of how many."""
    found = cell.glance
    if found is None:
        return "–"
    return str(found.removed) if found.total is None else f"{found.removed}/{found.total}"


def time_words(cell: CellState) -> str:
    """Return the time of a cell: of its steps or, while it runs, of this call."""
    spent = cell.seconds or (0.0 if cell.glance is None else cell.glance.seconds)
    return duration(spent) if spent else "–"


def _cells(cell: CellState) -> tuple[Cell, ...]:
    found = cell.glance
    ratio = None if found is None else Quantity(found.ratio, "×", sure=found.certain)
    step = None if found is None else found.step
    return (
        cell_title(cell),
        state_words(cell),
        step,
        removed_words(cell),
        quality_words(cell),
        ratio,
        time_words(cell),
    )
