"""Reports: what a run or a network is, in tables and as JSON values."""

from __future__ import annotations

from shoal.report.about import about_lines, figure_lines, machine_words, task_lines
from shoal.report.compare_tables import Compared, Comparison, comparison_lines, comparison_tables
from shoal.report.extra_tables import energy_lines, energy_table, robustness_lines, robustness_table
from shoal.report.front_table import front_table
from shoal.report.inspection import (
    Inspection,
    inspect_network,
    inspection_lines,
    inspection_tables,
)
from shoal.report.latency_tables import latency_table, runtime_notes, runtimes_table
from shoal.report.merge_tables import merge_tables
from shoal.report.page import write_page
from shoal.report.run_tables import comparison_table, outcome_lines, outcome_tables, steps_table
from shoal.report.slower import slower_lines
from shoal.report.twin_table import twin_table
from shoal.search.records import RunRecord
from shoal.search.run_files import read_run

__all__ = [
    "Compared",
    "Comparison",
    "Inspection",
    "RunRecord",
    "about_lines",
    "comparison_lines",
    "comparison_table",
    "comparison_tables",
    "energy_lines",
    "energy_table",
    "figure_lines",
    "front_table",
    "inspect_network",
    "inspection_lines",
    "inspection_tables",
    "latency_table",
    "machine_words",
    "merge_tables",
    "outcome_lines",
    "outcome_tables",
    "read_run",
    "robustness_lines",
    "robustness_table",
    "runtime_notes",
    "runtimes_table",
    "slower_lines",
    "steps_table",
    "task_lines",
    "twin_table",
    "write_page",
]
