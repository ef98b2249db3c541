"""What was reproduced, beside what is published, in tables."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import Any

from shoal.display import three_digits
from shoal.published import Cell as Printed
from shoal.report.latency_tables import latency_table, runtime_notes
from shoal.report.table import Cell, Column, Quantity, Row, Table, text_columns
from shoal.reproduce import Merged, Target, printed_latencies
from shoal.reproduce import Row as Found

_TONES: dict[str, Any] = {"done": "", "failed": "strong"}


def reproduced_table(target: Target, rows: Sequence[Found]) -> Table:
    """Return published and measured figures side by side, a row for each published cell.

    Where nothing is measured, the reason stands in the figure's place. A data set or method of all
    rows stands in the title.
    """
    data, method = (_shared(rows, name) for name in ("data", "method"))
    title = target.title + (f", on {data}" if data else "") + (f", by {method}" if method else "")
    columns = [*text_columns("network" if data else "network, data")]
    columns += [] if method else text_columns("method")
    has_variant = any(row.variant for row in rows)
    if has_variant:
        columns.append(Column("options", align="left", priority=0 if method else 1))
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
    made = []
    for row, after in zip_longest(rows, rows[1:]):
        words = [
            row.model if data else f"{row.model}, {row.data}",
            *(() if method else (row.method,)),
            *((row.variant.replace("&", ", "),) if has_variant else ()),
        ]
        last = after is None or (after.model, after.data) != (row.model, row.data)
        cells = (*words, *_figures(row, shows_change))
        made.append(Row(cells, tone=_TONES.get(row.state, "faint"), last=last))
    return Table(title, tuple(columns), tuple(made), (f"published: {target.source}",))


def merged_tables(found: Merged | None, printed: Sequence[Printed]) -> list[Table]:
    """Return the sizes of merged networks beside the printed work, and their latencies.

    Then come the latencies that are printed. `printed` are the published cells of the runs; without
    `found` nothing was measured.
    """
    tables = [] if found is None else _measured(found, printed)
    times = _printed_times(printed)
    return tables if times is None else [*tables, times]


def _measured(found: Merged, printed: Sequence[Printed]) -> list[Table]:
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
    tables = [Table("merged networks", columns, tuple(rows))]
    timed = latency_table(found.latency, names)
    if timed is not None:
        tables.append(timed)
    failed = runtime_notes(found.latency, names)
    return [*tables[:-1], replace(tables[-1], notes=(*tables[-1].notes, *failed))]


def _printed_times(printed: Sequence[Printed]) -> Table | None:
    """Return the printed latencies by device and count; None where a table has none."""
    times = {(one.device, one.removed): one for one in printed_latencies(printed)}
    if not times:
        return None
    counts = sorted({removed for _, removed in times})
    rows = []
    for device in dict.fromkeys(device for device, _ in times):
        shown = {n: times[device, n] for n in counts if (device, n) in times}
        took = {n: three_digits(one.latency_ms) for n, one in shown.items()}
        ratios = {n: f"{one.ratio:.2f}" for n, one in shown.items() if one.ratio is not None}
        rows.append(Row((device, *map(took.get, counts))))
        rows.append(Row(("  dense / this", *map(ratios.get, counts)), last=True))
    columns = (*text_columns("device"), *(Column(str(count)) for count in counts))
    notes = (
        "milliseconds of one inference as the paper has them; dense / this: printed latency of "
        "dense on that device over this one's",
    )
    return Table("printed latency, ms, by how many are removed", columns, tuple(rows), notes)


def reproduced_lines(
    target: Target, rows: Sequence[Found], missing: Mapping[str, str], budget: float = 1.0
) -> list[str]:
    """Return what to say under the tables: why runs failed, which data are missing, and notes.

    `budget` is the share of the published epochs that each training had.
    """
    failed = {
        (f"{row.model} on {row.data}", row.method, row.variant.replace("&", ", ")): row.why
        for row in rows
        if row.why
    }
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
        *(f"{', '.join(filter(None, key))}, failed: {why}" for key, why in failed.items()),
        *(f"no data for {name}: {text}" for name, text in missing.items()),
        *(f"note: {note}" for note in target.notes),
    ]


def _shared(rows: Sequence[Found], name: str) -> str:
    """Return what all rows have of a name; "" where they differ."""
    found = {getattr(row, name) for row in rows}
    return str(*found) if len(found) == 1 else ""


def _figures(row: Found, shows_change: bool) -> list[Cell]:
    cell = row.cell
    removed = row.removed if cell is None or cell.removed is None else cell.removed
    if not shows_change:
        return [removed, row.published, _spread(row, row.accuracies, "%") or row.state]
    return [
        removed,
        None if cell is None else cell.change,
        _spread(row, row.changes, "signed") or row.state,
        None if cell is None else cell.macs_cut,
        row.macs_cut,
        None if cell is None else cell.training_speedup,
        row.training_speedup,
    ]


def _spread(row: Found, values: Sequence[float], unit: str) -> Cell:
    """Return the mean of a row's values with their deviation, and of how many seeds if not of all.

    None without a value.
    """
    if not values:
        return None
    spread = statistics.stdev(values) if len(values) > 1 else None
    mean = Quantity(statistics.fmean(values), unit, spread=spread)
    return mean if len(values) >= row.asked else f"{mean}, {len(values)} of {row.asked} seeds"
