"""A run's result in int8: its accuracy, and latency by depth, by int8 and by both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shoal.report.latency_tables import doubt_notes, places_of, quotient, runtime_name
from shoal.report.table import (
    Cell,
    Column,
    Quantity,
    Row,
    Table,
    quality_title,
    quality_unit,
    text_columns,
)
from shoal.search.figures import TOP1
from shoal.search.records import Int8, LatencyReport, Metrics, RunRecord

_NETWORKS = {
    "dense_folded": "dense",
    "result_merged": "result",
    "dense_int8": "dense, int8",
    "result_int8": "result, int8",
}


def int8_tables(record: RunRecord) -> list[Table]:
    """Return the tables of accuracy and latency in int8; none where nothing was quantized."""
    if not record.int8 or record.latency is None:
        return []
    latencies = _latency_table(record.latency)
    return [
        _accuracy_table(record.final, record.int8),
        *([] if latencies is None else [latencies]),
    ]


def int8_lines(record: RunRecord) -> list[str]:
    """Return where the result in int8 is, and where it is slower than in float."""
    if not record.int8 or record.latency is None:
        return []
    lines = []
    if record.folder is not None:
        folder = record.folder / "int8"
        files = (f"'{folder / one.file}' for {runtime_name(one.runtime)}" for one in record.int8)
        lines.append(f"in int8, it is in {' and in '.join(files)}")
    slower = [one for one in record.latency.measured if _is_slower(one)]
    if slower:
        places = [f"{runtime_name(one['runtime'])} at batch {one['batch']}" for one in slower]
        lines.append(f"note: in int8 it is slower than in float in {' and in '.join(places)}")
    return lines


def _is_slower(one: Mapping[str, Any]) -> bool:
    """Whether the result is certainly slower in int8 than in float, both against dense."""
    small, full = (one["ratio"].get(name) for name in ("result_int8", "result_merged"))
    if small is None or full is None:
        return False
    return small.get("trusted", True) and bool(small["high"] < full["low"])


def _accuracy_table(final: Metrics, found: Sequence[Int8]) -> Table:
    columns = (
        *text_columns("result"),
        Column(quality_title("validation", final.quality_name), quality_unit(final)),
        Column("change", "points"),
        Column(quality_title("test", final.quality_name), quality_unit(final)),
        Column("change", "points"),
        Column("same answers", meaning="of the training images it was calibrated on", priority=1),
        Column("size", "count", "right", "bytes of what was written", 2),
    )
    rows = [Row(("float", final.top1_val, None, final.top1_test, None, None, None))]
    for one in found:
        agreement = None if one.agreement is None else f"{one.agreement:.1f} %"
        cells = (
            f"int8, {runtime_name(one.runtime)}",
            one.top1_val,
            one.top1_val - final.top1_val,
            one.top1_test,
            _change(one.top1_test, final.top1_test),
            agreement,
            one.bytes,
        )
        rows.append(Row(cells))
    note = (
        f"merged, calibrated on {found[0].samples} training images without augmentation; each in "
        "its own runtime; change: int8 - float"
    )
    what = "accuracy" if final.quality_name == TOP1 else final.quality_name
    return Table(f"{what} in int8", columns, tuple(rows), (note,))


def _change(after: float | None, before: float | None) -> float | None:
    return None if after is None or before is None else after - before


def _latency_table(found: LatencyReport) -> Table | None:
    """Return the latencies of the four networks, runtime by runtime and batch by batch."""
    shown = [one for one in found.measured if set(_NETWORKS) <= set(one["latency"])]
    if not shown:
        return None
    shared, where = places_of(shown)
    rows = []
    for place, one in zip(where, shown, strict=True):
        for name, words in _NETWORKS.items():
            first = name == "dense_folded"
            ratio: Cell = Quantity(1.0, "×") if first else quotient(one["ratio"][name])
            time = one["latency"][name]["median_ms"]
            head = (place, one["batch"]) if first else ("", "")
            rows.append(Row((*head, words, time, ratio), last=name == "result_int8"))
    meaning = "latency of dense in float over this one's, from the same rounds"
    columns = (
        *text_columns("runtime"),
        Column("batch"),
        *text_columns("network"),
        Column("latency", "ms", meaning="median of one call"),
        Column("dense / this", meaning=meaning),
    )
    notes = (
        f"dense / this: {meaning}, with its 95 % interval: of the result what depth gains, of "
        "dense in int8 what int8 gains, of the result in int8 what both gain",
        *doubt_notes(one["ratio"][name] for one in shown for name in _NETWORKS),
    )
    return Table(f"latency in int8{shared}", columns, tuple(rows), notes)
