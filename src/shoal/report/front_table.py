"""The networks of a run on the front of quality against latency, and how to get one."""

from __future__ import annotations

from shoal.display import to_type
from shoal.report.table import Column, Quantity, Row, Table, quality_title, quality_unit
from shoal.search.figures import TOP1
from shoal.search.front import front
from shoal.search.records import RunRecord


def front_table(record: RunRecord) -> Table:
    """Return the table of the steps that no other one beats in both quality and latency."""
    chosen = record.chosen.step
    best = front(record.steps)
    rows = [
        Row(
            (
                step.step,
                step.metrics.top1_val,
                step.metrics.top1_test,
                Quantity(step.latency_ratio, "×", sure=not step.latency_doubt),
                step.metrics.depth,
                step.metrics.macs,
                "result" if step.step == chosen else "dense" if step.step == 0 else "",
            ),
            "strong" if step.step == chosen else "",
        )
        for step in best
    ]
    dense = record.dense
    columns = (
        Column("step"),
        Column(quality_title("validation", dense.quality_name), quality_unit(dense)),
        Column(quality_title("test", dense.quality_name), quality_unit(dense), priority=2),
        Column("dense / this"),
        Column("depth", priority=1),
        Column("MACs", "count", priority=3),
        Column("", align="left"),
    )
    folder = "DIR" if record.folder is None else record.folder
    doubted = "; ?: not to be trusted, since the machine was busy, so it hides no other step"
    notes = (
        "no other step is at least as good on validation and as fast"
        + (doubted if any(step.latency_doubt for step in best) else ""),
        "one of them, merged, as a file:" + to_type("export", folder, "--step", "N"),
    )
    what = "accuracy" if dense.quality_name == TOP1 else dense.quality_name
    return Table(f"{what} against latency", columns, tuple(rows), notes)
