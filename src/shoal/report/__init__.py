"""Reports: what a run or a network is, in tables for the terminal and as JSON values."""

from __future__ import annotations

from shoal.report.inspection import Inspection, inspect_network
from shoal.report.inspection_tables import inspection_tables
from shoal.report.record import RunRecord, read_run
from shoal.report.run_tables import comparison_table, outcome_lines, steps_table

__all__ = [
    "Inspection",
    "RunRecord",
    "comparison_table",
    "inspect_network",
    "inspection_tables",
    "outcome_lines",
    "read_run",
    "steps_table",
]
