"""A run's result beside its twin: the same layers, trained from scratch."""

from __future__ import annotations

from shoal.report.table import Column, Row, Table, quality_title, quality_unit, text_columns
from shoal.search.records import Metrics, RunRecord


def twin_table(record: RunRecord, found: RunRecord | None) -> Table | None:
    """Return the table of dense network, result and the twin that was found; None if none was."""
    if found is None or found.latency is None or record.latency is None:
        return None
    dense, epochs = record.dense, sum(step.epochs for step in record.steps)
    upto = sum(step.epochs for step in record.steps[: record.chosen.step + 1])
    rows = [
        _row("dense", dense, record.steps[0].epochs, dense.depth),
        _row("result", record.final, upto, record.latency.merged_depth),
        _row("twin", found.dense, found.steps[0].epochs, found.latency.merged_depth),
    ]
    unit = quality_unit(dense)
    columns = (
        *text_columns(""),
        Column(quality_title("validation", dense.quality_name), unit),
        Column(quality_title("test", dense.quality_name), unit),
        Column("epochs", meaning="of training, those before the run not counted"),
        Column("depth, merged", priority=1),
    )
    before = "" if record.steps[0].epochs else "; what it was trained before is not counted"
    notes = (
        "twin: the layers of the result with new weights, trained at once for as many epochs as "
        f"the run spent in all ({epochs}){before}, and merged likewise",
        "it is as fast as the result, whose layers it has",
    )
    return Table("result and twin", columns, tuple(rows), notes)


def _row(name: str, figures: Metrics, epochs: int, depth: int) -> Row:
    cells = (name, figures.top1_val, figures.top1_test, epochs, depth)
    return Row(cells, "strong" if name == "result" else "")
