"""A merge in tables: what became of each layer, and where regions end."""

from __future__ import annotations

from shoal.merge.report import Merged, MergeReport
from shoal.report.latency_tables import runtime_name
from shoal.report.table import Cell, Column, Quantity, Row, Table, amount, text_columns
from shoal.runtimes import EAGER


def merge_tables(report: MergeReport) -> list[Table]:
    """Return all there is to say of a merge."""
    columns = (
        *text_columns("layers", "before", "after"),
        Column("MACs", priority=2),
        Column("latency", priority=1),
    )
    regions = list(dict.fromkeys(found.region for found in report.boundaries))
    cells: dict[str, list[tuple[Cell, ...]]] = {name: [] for name in [*regions, ""]}
    for item in report.merged:
        cells[item.region if item.region in regions else ""].append(_merged(item))
    for kept in report.kept:
        own = (", ".join(kept.layers), "kept apart", kept.reason, "", "")
        cells[kept.region if kept.region in regions else ""].append(own)
    rows = [Row(own, last=own is group[-1]) for group in cells.values() for own in group]
    spans = [" … ".join(dict.fromkeys((b.layers[0], b.layers[-1]))) for b in report.boundaries]
    ends = zip(spans, report.boundaries, strict=True)
    return [
        Table("merged, region by region", columns, tuple(rows), tuple(_sums(report))),
        Table(
            "regions: where what is linear begins and ends",
            text_columns("layers", "begins here because", "ends there because"),
            tuple(Row((span, found.begins, found.ends)) for span, found in ends),
        ),
    ]


def _merged(item: Merged) -> tuple[Cell, ...]:
    latency = ""
    if item.latency_before_ms is not None and item.latency_after_ms is not None:
        before, after = item.latency_before_ms, item.latency_after_ms
        latency = f"{Quantity(before, 'ms')} → {Quantity(after, 'ms')}"
    macs = " → ".join(map(amount, dict.fromkeys((item.macs_before, item.macs_after))))
    return ", ".join(item.layers) or item.name, item.before, item.after, macs, latency


def _sums(report: MergeReport) -> list[str]:
    lines = [
        f"depth {report.depth_before} → {report.depth_after}, "
        f"{amount(report.macs_before)} → {amount(report.macs_after)} MACs per sample"
    ]
    if report.latency_before_ms is not None and report.latency_after_ms is not None:
        names = " and ".join(map(runtime_name, report.runtime.split(",")))
        where = "" if report.runtime == EAGER else f" in {names}"
        sizes = report.batch if isinstance(report.batch, tuple) else (report.batch,)
        batch = " and ".join(map(str, sizes))
        before, after = report.latency_before_ms, report.latency_after_ms
        lines.append(
            f"the whole network at batch {batch}{where}: {Quantity(before, 'ms')} with "
            f"scales and shifts folded, {Quantity(after, 'ms')} merged"
            + (f"; not to be trusted: {report.latency_doubt}" if report.latency_doubt else "")
        )
    if report.layers_doubt:
        lines.append(f"layers could not be timed, so their work decided: {report.layers_doubt}")
    exact = report.max_rel_error_float64
    lines.append(
        f"largest relative error of the outputs: {report.max_rel_error:.1e}"
        + ("" if exact is None else f", in float64 {exact:.1e}")
        + f", on {report.checked_inputs} batches"
    )
    return lines
