"""A merge in tables: what became of each layer, and where regions end."""

from __future__ import annotations

from collections.abc import Sequence

from shoal.merge.report import Boundary, Kept, Merged, MergeReport
from shoal.report.latency_tables import runtime_name
from shoal.report.table import Cell, Column, Quantity, Row, Table
from shoal.report.wording import amount
from shoal.runtimes import EAGER

__all__ = ["merge_tables"]


def merge_tables(report: MergeReport) -> list[Table]:
    """Return all there is to say of a merge."""
    return [_merged(report), _boundaries(report)]


def _merged(report: MergeReport) -> Table:
    texts = [Column(name, align="left") for name in ("layers", "before", "after")]
    columns = (*texts, Column("MACs", priority=2), Column("latency", priority=1))
    regions = list(dict.fromkeys(found.region for found in report.boundaries))
    rows: list[Row] = []
    for region in [*regions, None]:  # None: of no region that is listed
        own = [_merged_cells(m) for m in report.merged if _in(m.region, region, regions)]
        own += [_kept_cells(k) for k in report.kept if _in(k.region, region, regions)]
        rows += (Row(cells, last=cells is own[-1]) for cells in own)
    return Table("merged, region by region", columns, tuple(rows), tuple(_sums(report)))


def _boundaries(report: MergeReport) -> Table:
    heads = ("layers", "begins here because", "ends there because")
    return Table(
        "regions: where what is linear begins and ends",
        tuple(Column(head, align="left") for head in heads),
        tuple(Row((_span(found), found.begins, found.ends)) for found in report.boundaries),
    )


def _in(own: str, region: str | None, regions: Sequence[str]) -> bool:
    return own not in regions if region is None else own == region


def _kept_cells(kept: Kept) -> tuple[Cell, ...]:
    return ", ".join(kept.layers), "kept apart", kept.reason, "", ""


def _merged_cells(item: Merged) -> tuple[Cell, ...]:
    latency = ""
    if item.latency_before_ms is not None and item.latency_after_ms is not None:
        before, after = item.latency_before_ms, item.latency_after_ms
        latency = f"{Quantity(before, 'ms')} → {Quantity(after, 'ms')}"
    macs = amount(item.macs_before)
    if item.macs_before != item.macs_after:
        macs += f" → {amount(item.macs_after)}"
    return ", ".join(item.layers) or item.name, item.before, item.after, macs, latency


def _span(found: Boundary) -> str:
    first, last = found.layers[0], found.layers[-1]
    return first if len(found.layers) == 1 else f"{first} … {last}"


def _sums(report: MergeReport) -> list[str]:
    lines = [
        f"depth {report.depth_before} → {report.depth_after}, "
        f"{amount(report.macs_before)} → {amount(report.macs_after)} MACs per sample"
    ]
    if report.latency_before_ms is not None and report.latency_after_ms is not None:
        where = "" if report.runtime == EAGER else f" in {runtime_name(report.runtime)}"
        before, after = report.latency_before_ms, report.latency_after_ms
        lines.append(
            f"the whole network at batch {report.batch}{where}: {Quantity(before, 'ms')} with "
            f"scales and shifts folded, {Quantity(after, 'ms')} merged"
        )
    exact = report.max_rel_error_float64
    lines.append(
        f"largest relative error of the outputs: {report.max_rel_error:.1e}"
        + ("" if exact is None else f", in float64 {exact:.1e}")
        + f", on {report.checked_inputs} batches"
    )
    return lines
