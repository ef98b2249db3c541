"""A run's result beside its twin: the same layers, trained from scratch."""

from __future__ import annotations

from dataclasses import replace

import shoal.methods  # noqa: F401  registers them, whose defaults old runs have
from shoal import published
from shoal.display import counted
from shoal.report.table import Column, Row, Table, quality_title, quality_unit, text_columns
from shoal.search.published import published_of
from shoal.search.records import Metrics, RunRecord, lineage
from shoal.search.run_files import read_config


def twin_table(record: RunRecord, found: RunRecord | None) -> Table | None:
    """Return the table of dense network, result and the twin that was found; None if none was.

    Where a paper has such a twin too, its figures have a column.
    """
    if found is None or found.latency is None or record.latency is None:
        return None
    dense, spent = record.dense, sum(step.epochs for step in record.steps)
    upto = sum(step.epochs for step in lineage(record.steps))
    epochs = found.steps[0].epochs
    rows = [
        _row("dense", dense, record.steps[0].epochs, dense.depth),
        _row("result", record.final, upto, record.latency.merged_depth),
        _row("twin", found.dense, epochs, found.latency.merged_depth),
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
    length = (
        f"as many epochs as the run spent in all ({spent})"
        if epochs == spent
        else f"{counted(epochs, 'epoch')}, where the run spent {spent} in all"
    )
    notes = (
        f"twin: the layers of the result with new weights, trained at once for {length}{before}, "
        "and merged likewise",
        "it is as fast as the result, whose layers it has",
    )
    return _with_published(Table("result and twin", columns, tuple(rows), notes), record)


def _row(name: str, figures: Metrics, epochs: int, depth: int) -> Row:
    cells = (name, figures.top1_val, figures.top1_test, epochs, depth)
    return Row(cells, "strong" if name == "result" else "")


def _with_published(table: Table, record: RunRecord) -> Table:
    """Return the table with what is published of the three, where the twin is."""
    options = {} if record.folder is None else read_config(record.folder)
    twin = published_of(options, record.removed, twin=True)
    if twin is None:
        return table
    known = (published_of(options, 0), published_of(options, record.removed), twin)
    rows = (
        replace(row, cells=(*row.cells, None if cell is None else cell.accuracy))
        for row, cell in zip(table.rows, known, strict=True)
    )
    column = Column("published", "%", meaning="test accuracy in the paper")
    sources = dict.fromkeys(published.tables()[cell.table].source for cell in known if cell)
    note = f"published: {'; '.join(sources)}, after the paper's own training"
    return replace(
        table, columns=(*table.columns, column), rows=tuple(rows), notes=(*table.notes, note)
    )
