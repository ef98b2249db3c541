"""A merge in tables for the terminal: what became of each layer, and where regions end."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from shoal.merge.report import Boundary, Merged, MergeReport
from shoal.report.latency_tables import runtime_name
from shoal.report.wording import amount, milliseconds
from shoal.runtimes import EAGER

__all__ = ["boundaries_table", "merge_tables", "merged_table"]


def merge_tables(report: MergeReport) -> RenderableType:
    """Return all there is to say of a merge."""
    return Group(merged_table(report), boundaries_table(report), *_sums(report))


def merged_table(report: MergeReport) -> Table:
    """Return, region by region, what was merged into what, and what was kept and why."""
    table = _table("merged, region by region")
    for head in ("layers", "before", "after"):
        table.add_column(head, overflow="fold")
    for head in ("MACs", "latency"):
        table.add_column(head, justify="right")
    known = [found.region for found in report.boundaries]
    for region in [*known, ""]:
        rows = _rows(report, region, last=region == "", known=set(known))
        for row in rows:
            table.add_row(*map(escape, row))
        if rows:
            table.add_section()
    return table


def boundaries_table(report: MergeReport) -> Table:
    """Return where each region begins and ends, and why."""
    table = _table("regions: where what is linear begins and ends")
    for head in ("layers", "begins here because", "ends there because"):
        table.add_column(head, overflow="fold")
    for found in report.boundaries:
        table.add_row(*map(escape, (_span(found), found.begins, found.ends)))
    return table


_Row = tuple[str, str, str, str, str]


def _rows(report: MergeReport, region: str, *, last: bool, known: set[str]) -> list[_Row]:
    def here(name: str) -> bool:
        return name not in known if last else name == region

    rows = [_merged_row(item) for item in report.merged if here(item.region)]
    for kept in report.kept:
        if here(kept.region):
            rows.append((", ".join(kept.layers), "kept apart", kept.reason, "", ""))
    return rows


def _merged_row(item: Merged) -> _Row:
    latency = ""
    if item.latency_before_ms is not None and item.latency_after_ms is not None:
        latency = f"{milliseconds(item.latency_before_ms)} → {milliseconds(item.latency_after_ms)}"
    macs = amount(item.macs_before)
    if item.macs_before != item.macs_after:
        macs += f" → {amount(item.macs_after)}"
    return ", ".join(item.layers) or item.name, item.before, item.after, macs, latency


def _span(found: Boundary) -> str:
    first, last = found.layers[0], found.layers[-1]
    return first if len(found.layers) == 1 else f"{first} … {last}"


def _sums(report: MergeReport) -> list[str]:
    """Return the lines under the tables: totals, and the proof that nothing changed."""
    lines = [
        f"depth {report.depth_before} → {report.depth_after}, "
        f"{amount(report.macs_before)} → {amount(report.macs_after)} MACs per sample"
    ]
    if report.latency_before_ms is not None and report.latency_after_ms is not None:
        where = "" if report.runtime == EAGER else f" in {runtime_name(report.runtime)}"
        before, after = map(milliseconds, (report.latency_before_ms, report.latency_after_ms))
        lines.append(
            f"the whole network at batch {report.batch}{where}: {before} with scales and shifts "
            f"folded, {after} merged"
        )
    exact = report.max_rel_error_float64
    lines.append(
        f"largest relative error of the outputs: {report.max_rel_error:.1e}"
        + ("" if exact is None else f", in float64 {exact:.1e}")
        + f", on {report.checked_inputs} batches"
    )
    return lines


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", header_style="dim")
