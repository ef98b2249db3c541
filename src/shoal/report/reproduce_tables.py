"""What was reproduced, beside what is published, in tables."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from shoal.report.latency_tables import latency_table
from shoal.report.table import Cell, Column, Quantity, Row, Table, text_columns
from shoal.reproduce import Merged, Target
from shoal.reproduce import Row as Found

_TONES: dict[str, Any] = {"done": "", "failed": "strong"}


def reproduced_table(target: Target, rows: Sequence[Found]) -> Table:
    """Return published and measured figures side by side, a row for each published cell.

    Where nothing is measured, the reason stands in the figure's place.
    """
    columns = [*text_columns("network, data", "method")]
    has_variant = any(row.variant for row in rows)
    if has_variant:
        columns.append(Column("options", align="left", priority=1))
    columns.append(Column("removed", meaning="rectifiers or blocks, as the method counts"))
    shows_change = any(row.cell is not None and row.cell.change is not None for row in rows)
    if shows_change:
        columns += [
            Column("published", "points", meaning="change of test accuracy against dense"),
            Column("here, points", meaning="the same: mean and standard deviation over seeds"),
            Column("MACs cut, published", "%", priority=2),
            Column("MACs cut here", "%", priority=2),
            Column("training, published", "×", meaning="time of dense training over this one's",
                   priority=3),
            Column("training here", "×", meaning="time of an epoch, dense over this", priority=3),
        ]  # fmt: skip
    else:
        columns += [
            Column("published", "%", meaning="test accuracy"),
            Column("here", meaning="test accuracy: mean and standard deviation over seeds"),
        ]
    made = [
        _row(row, rows[place + 1] if place + 1 < len(rows) else None, has_variant, shows_change)
        for place, row in enumerate(rows)
    ]
    return Table(target.title, tuple(columns), tuple(made), (f"published: {target.source}",))


def merged_tables(found: Merged, printed: Sequence[Any]) -> list[Table]:
    """Return the sizes of merged networks beside the printed work, and their latencies.

    `printed` are the published cells of Table 3.
    """
    mflops = {cell.removed: cell.mflops for cell in printed}
    columns = (
        Column("removed"),
        Column("depth", meaning="layers with weights on the longest path, merged"),
        Column("MACs", "count", meaning="multiply-accumulates of one sample, merged"),
        Column("before merging", "count", meaning="the same network not merged", priority=1),
        Column("printed MFLOPs", meaning="as the paper has them"),
        Column("error", "error", meaning="largest relative change of outputs by merging"),
    )
    rows = [
        Row(
            (
                size.removed,
                size.depth,
                size.macs,
                size.macs_before,
                None if (value := mflops.get(size.removed)) is None else f"{value:.2f}",
                size.max_rel_error,
            )
        )
        for size in found.sizes
    ]
    names = {
        str(size.removed): f"{size.removed} removed, merged" if size.removed else "dense, folded"
        for size in found.sizes
    }
    timed = latency_table(found.latency, names)
    sizes = Table("merged networks", columns, tuple(rows))
    return [sizes] if timed is None else [sizes, timed]


def reproduced_lines(
    target: Target, rows: Sequence[Found], missing: Mapping[str, str], budget: float = 1.0
) -> list[str]:
    """Return what to say under the tables: why runs failed, which data are missing, and notes.

    `budget` is the share of the published epochs that each training had.
    """
    failed = {(row.model, row.data, row.method): row.why for row in rows if row.why}
    others = {
        row.data: row.measured_on
        for row in rows
        if row.measured_on and row.measured_on.partition(":")[0] != row.data
    }
    return [
        *(
            [f"budget {budget:g}: each training has this share of the published epochs"]
            if budget != 1.0
            else []
        ),
        *(f"measured on {given} in the place of {data}" for data, given in others.items()),
        *(f"{' on '.join(key[:2])}, {key[2]}, failed: {why}" for key, why in failed.items()),
        *(f"no data for {name}: {text}" for name, text in missing.items()),
        *(f"note: {note}" for note in target.notes),
    ]


def _row(row: Found, after: Found | None, has_variant: bool, shows_change: bool) -> Row:
    wanted = None if row.cell is None else row.cell.removed
    cells: list[Cell] = [f"{row.model}, {row.data}", row.method]
    if has_variant:
        cells.append(row.variant)
    cells.append(row.removed if wanted is None else wanted)
    cell = row.cell
    if shows_change:
        cells += [
            None if cell is None else cell.change,
            _change(row.change, row.changes) or row.state,
            None if cell is None else cell.macs_cut,
            row.macs_cut,
            None if cell is None else cell.training_speedup,
            row.training_speedup,
        ]
    else:
        cells += [row.published, _spread(row.accuracy, row.accuracies, "%") or row.state]
    last = after is None or (after.model, after.data) != (row.model, row.data)
    return Row(tuple(cells), tone=_TONES.get(row.state, "faint"), last=last)


def _spread(mean: float | None, values: Sequence[float], unit: str) -> Quantity | None:
    """Return a mean with the deviation of several values."""
    if mean is None:
        return None
    spread = statistics.stdev(values) if len(values) > 1 else None
    return Quantity(mean, unit, spread=spread)


def _change(mean: float | None, values: Sequence[float]) -> str | None:
    """Return a change likewise, without its unit, which stands in the head of the column."""
    found = _spread(mean, values, "points")
    return None if found is None else str(found).removesuffix(" points")
