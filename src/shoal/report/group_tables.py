"""A sweep's runs side by side: a row for all seeds, the best in bold, beside what is published."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace

from shoal import published
from shoal.report.table import Cell, Column, Quantity, Row, Table, unit_of
from shoal.search.figures import TOP1
from shoal.sweep.groups import Group, Spread, best

_COLUMNS = (
    Column("model and data", align="left"),
    Column("method", align="left"),
    Column("removed", meaning="of what the method counts: rectifiers or blocks", priority=2),
    Column("validation", meaning="quality of the result on validation data", priority=8),
    Column("test", meaning="quality of the result on test data"),
    Column("dense", meaning="quality of the dense network on the same data", priority=5),
    Column("published", meaning="test accuracy in the paper, with as many removed", priority=1),
    Column("twin", meaning="quality of the result's layers trained from scratch", priority=2),
    Column("twin, published", meaning="its test accuracy in the paper", priority=3),
    Column("dense / this", meaning="latency of dense over this, both merged: above 1 is faster"),
    Column("latency", meaning="of the result, merged", priority=9),
    Column("MACs", meaning="multiply-accumulates of dense over this", priority=4),
    Column("depth", meaning="layers with weights on the longest path", priority=7),
    Column("evaluations", "count", meaning="of rectifiers, of one sample", priority=10),
    Column("time", "s", meaning="of the whole search, the mean of the seeds", priority=6),
    Column("seeds", meaning="that are done", priority=3),
)


def groups_table(groups: Sequence[Group], title: str = "comparison") -> Table:
    """Return the table of a sweep's groups; what is the same in all rows has no column."""
    tops = {name: best(groups, name) for name in ("quality", "speedup", "macs_ratio")}
    rows = []
    for place, one in enumerate(groups):
        following = groups[place + 1] if place + 1 < len(groups) else one
        kind = (one.model, one.data)
        rows.append(Row(_row(one, tops), last=kind != (following.model, following.data)))
    untested = any(one.quality is not None and "test" not in one.figures for one in groups)
    columns = tuple(  # where validation is all there is, it is what the reader looks for
        replace(column, priority=0) if untested and column.name == "validation" else column
        for column in _COLUMNS
    )
    table = Table(title, columns, tuple(rows), tuple(_notes(groups)))
    return _without_needless(table)


def open_table(groups: Sequence[Group]) -> Table | None:
    """Return the table of the cells that are not done, with the reason; None if all are."""
    missing = {name: why for one in groups for name, why in one.open.items()}
    rows = (Row((name.rpartition("-")[0], why)) for name, why in missing.items())
    columns = (Column("cell", align="left"), Column("why", align="left"))
    return Table("not done", columns, tuple(rows)) if missing else None


def groups_csv(groups: Sequence[Group]) -> str:
    """Return the groups as CSV: each figure's mean and deviation over the seeds.

    Qualities are in points, latency in ms, `seconds` in s; ratios are dense over this. `trusted`
    tells whether the machine was calm whenever latency was measured, `certain` also that every
    run's interval of the speedup leaves out 1. Of what is
    published `published` is the accuracy in percent, `published_change` its change against dense in
    points, whichever the paper gives; `published_twin` is its accuracy when trained from scratch.
    """
    names = list(dict.fromkeys(name for one in groups for name in one.figures))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    heads = [head for name in names for head in (name, f"{name}_deviation")]
    first = ["model", "data", "method", "options", "quality", "seeds", "missing", "trusted",
             "certain"]  # fmt: skip
    writer.writerow([*first, *heads, *_PUBLISHED])
    for one in groups:
        figures = [value for name in names for value in _pair(one.figures.get(name))]
        seeds = " ".join(map(str, one.seeds))
        own = [one.model, one.data, one.method, one.variant, one.quality_name, seeds, len(one.open),
               one.trusted, one.trusted and one.certain]  # fmt: skip
        writer.writerow([*own, *figures, *_printed(one.published, one.published_twin)])
    return out.getvalue()


_PUBLISHED = ("published", "published_change", "published_in", "published_twin")


def _printed(known: published.Cell | None, twin: published.Cell | None) -> list[object]:
    """Return what is published, as `_PUBLISHED` names it."""
    own = [None] * 3 if known is None else [known.accuracy, known.change, known.table]
    return [*own, None if twin is None else twin.accuracy]


def _pair(found: Spread | None) -> tuple[object, object]:
    if found is None:
        return "", ""
    return found.mean, "" if found.deviation is None else found.deviation


def _row(one: Group, tops: Mapping[str, Mapping[tuple[str, str], float]]) -> tuple[Cell, ...]:
    unit, kind, found = unit_of(one.quality_unit), (one.model, one.data), one.figures
    with_test, trusted = "test" in found, one.trusted

    def top(figure: str, name: str) -> bool:
        return name in found and found[name].mean == tops[figure].get(kind)

    fastest = trusted and top("speedup", "speedup")

    return (
        f"{one.model} on {one.data}",
        one.title,
        _removed(one),
        _quantity(found.get("val"), unit, best=not with_test and top("quality", "val")),
        _quantity(found.get("test"), unit, best=top("quality", "test")),
        _quantity(found.get("dense_test" if with_test else "dense_val"), unit),
        _told(one.published),
        _quantity(found.get("twin_test" if with_test else "twin_val"), unit),
        _told(one.published_twin),
        _quantity(found.get("speedup"), "×", best=fastest, sure=trusted and one.certain),
        _quantity(found.get("latency_ms"), "ms", sure=trusted),
        _quantity(found.get("macs_ratio"), "×", best=top("macs_ratio", "macs_ratio")),
        None if "depth" not in found else f"{found['depth'].mean:g}",
        None if "relus" not in found else found["relus"].mean,
        None if "seconds" not in found else found["seconds"].mean,
        len(one.seeds),
    )


def _removed(one: Group) -> str | None:
    found = one.figures.get("removed")
    if found is None:
        return None
    count = f"{found.mean:.1f} ± {found.deviation:.1f}" if found.deviation else f"{found.mean:g}"
    return count if one.total is None else f"{count}/{one.total}"


def _told(known: published.Cell | None) -> Cell:
    """Return a published accuracy or, where the paper gives that alone, its change."""
    if known is None:
        return None
    value, unit = (known.change, "points") if known.accuracy is None else (known.accuracy, "%")
    return None if value is None else Quantity(value, unit, sure=known.counted)


def _quantity(
    found: Spread | None, unit: str, *, best: bool = False, sure: bool = True
) -> Quantity | None:
    if found is None:
        return None
    return Quantity(found.mean, unit, spread=found.deviation, best=best, sure=sure)


def _notes(groups: Sequence[Group]) -> list[str]:
    notes = []
    if any(len(one.seeds) > 1 for one in groups):
        notes.append("mean ± standard deviation over the seeds")
    if not all(one.trusted and one.certain for one in groups):
        notes.append(
            "dense / this, ?: too close to tell in some run, or not to be trusted, since the "
            "machine was busy"
        )
    every = (cell for one in groups for cell in (one.published, one.published_twin))
    known = [cell for cell in every if cell is not None]
    if known:
        tables = dict.fromkeys(cell.table for cell in known)
        sources = "; ".join(published.tables()[name].source for name in tables)
        notes.append(f"published: {sources}, after the paper's own training")
    if not all(cell.counted for cell in known):
        notes.append("published, ?: the paper does not say how many were removed")
    names = {one.quality_name for one in groups} - {TOP1}
    if names:
        notes.append(f"quality: {', '.join(sorted(names))}")
    return notes


def _without_needless(table: Table) -> Table:
    """Return the table without columns that say nothing; what is the same in all goes above."""
    kinds = {row.cells[0] for row in table.rows}
    title = table.title
    if len(kinds) == 1:
        title, table = f"{title}: {kinds.pop()}", table.without(0)
    for place in reversed(range(len(table.columns))):
        if {row.cells[place] for row in table.rows} == {None}:
            table = table.without(place)
    return replace(table, title=title)
