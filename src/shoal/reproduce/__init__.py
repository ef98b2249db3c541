"""The papers' tables and figures reproduced: sweeps, measured beside what is published."""

from __future__ import annotations

from shoal.reproduce.merged import Merged, PrintedLatency, measure_merged, printed_latencies
from shoal.reproduce.outcome import Row, rows
from shoal.reproduce.plan import Plan, plan
from shoal.reproduce.targets import Target, Wanted, find_target, targets

__all__ = [
    "Merged",
    "Plan",
    "PrintedLatency",
    "Row",
    "Target",
    "Wanted",
    "find_target",
    "measure_merged",
    "plan",
    "printed_latencies",
    "rows",
    "targets",
]
