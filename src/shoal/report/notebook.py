"""What notebooks show of results, scores, reports and blocks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from shoal.importance import Scores
from shoal.measure import Benchmark
from shoal.merge.report import MergeReport
from shoal.network import Block, Site
from shoal.report.html import html_table
from shoal.report.inspection import estimated, scored_on
from shoal.report.latency_tables import benchmark_table
from shoal.report.merge_tables import merge_tables
from shoal.report.run_tables import headline, outcome_lines, outcome_tables, steps_table
from shoal.report.slower import slower_lines
from shoal.report.table import Column, Row, Table, text_columns
from shoal.search.records import RunRecord
from shoal.search.run_files import readable_twin

_STYLE = (
    "<style>.shoal-out table{border-collapse:collapse}.shoal-out .right{text-align:right;"
    "white-space:nowrap}.shoal-out .strong{font-weight:700}.shoal-out .faint,.shoal-out .note"
    "{opacity:.75}.shoal-out .narrow{display:none}.shoal-out .shoal{overflow-x:auto}"
    ".shoal-out h2{font-size:1.05em;margin:.6em 0 .2em}</style>"
)


def _shown(tables: Iterable[Table], lines: Sequence[str] = (), first: Sequence[str] = ()) -> str:
    said = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return (
        f'<div class="shoal-out">{_STYLE}'
        + "".join(f"<p><b>{escape(line)}</b></p>" for line in first)
        + "\n".join(map(html_table, tables))
        + (f"<ul>{said}</ul>" if said else "")
        + "</div>"
    )


def result_html(record: RunRecord) -> str:
    """Return what a run came to, and its steps."""
    twin, damage = readable_twin(record)
    tables = [*outcome_tables(record, twin), steps_table(record)]
    lines = [*outcome_lines(record), *(f"note: {note}" for note in damage)]
    return _shown(tables, lines, [headline(record), *slower_lines(record)])


def scores_html(scores: Scores) -> str:
    """Return the scores, the lowest first."""
    errors = scores.standard_errors if estimated(scores) else {}
    columns = [*text_columns("place"), Column(scores.title, "score")]
    columns += [Column("± standard error", "error")] if errors else []
    rows = [
        Row((name, scores[name], *([errors.get(name)] if errors else [])))
        for name in scores.lowest(len(scores) or 1)
    ]
    note = f"of {scored_on(scores, 'samples')}; the lowest goes first"
    return _shown([Table(f"scores by {scores.criterion}", tuple(columns), tuple(rows), (note,))])


def merge_html(report: MergeReport) -> str:
    """Return what was merged, and what was kept and why."""
    return _shown(merge_tables(report), first=[str(report).split("\n", 1)[0]])


def benchmark_html(found: Benchmark) -> str:
    """Return what a network costs."""
    return _shown([benchmark_table(found)])


def places_html(places: Sequence[Any]) -> str:
    """Return a network's blocks, or its sites."""
    blocks = [place for place in places if isinstance(place, Block)]
    if blocks:
        rows = [Row((b.name, "yes" if b.removable else f"no: {b.reason}", ", ".join(b.layers)))
                for b in blocks]  # fmt: skip
        columns = text_columns("block", "removable", "layers")
        return _shown([Table("residual blocks", columns, tuple(rows))])
    sites = [place for place in places if isinstance(place, Site)]
    rows = [Row((s.name, s.kind, s.linearized or "as it was", s.channels)) for s in sites]
    columns = (*text_columns("site", "kind", "now"), Column("channels"))
    return _shown([Table("rectifier sites", columns, tuple(rows))])
