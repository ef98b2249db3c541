"""A run as one HTML page that needs nothing beside it. It needs jinja2, and matplotlib to draw."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from shoal.errors import missing_extra
from shoal.files import write_file
from shoal.merge.report import MergeReport
from shoal.report.energy_tables import energy_table
from shoal.report.latency_tables import latency_table
from shoal.report.merge_tables import boundaries_table, merged_table
from shoal.report.record import RunRecord
from shoal.report.run_tables import comparison_table, outcome_lines, steps_table

__all__ = ["PAGE", "write_page"]

PAGE = "report.html"

_TEMPLATE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>shoal: {{ name }}</title>
<style>
  body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem;
         color: #1b2733; }
  h1 { font-size: 1.4rem; } h2 { font-size: 1.05rem; margin: 2rem 0 .5rem; }
  .wide { overflow-x: auto; }
  table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
  th, td { padding: .25rem .7rem; border-bottom: 1px solid #d8dfe6; text-align: left;
           vertical-align: top; }
  th { color: #5b6b7a; font-weight: 600; }
  .right { text-align: right; } .bold { font-weight: 700; } .dim { color: #8795a3; }
  svg { max-width: 100%; height: auto; } li { margin: .2rem 0; }
</style>
<h1>{{ name }}{% if not finished %}: not finished yet{% endif %}</h1>
{% for table in tables %}
<h2>{{ table.title }}</h2>
{% if table.figure %}{{ table.figure | safe }}{% endif %}
{% if table.rows %}
<div class="wide"><table>
<tr>{% for head in table.heads %}<th class="{{ head.align }}">{{ head.text }}</th>{% endfor %}</tr>
{% for row in table.rows %}
<tr class="{{ row.style }}">{% for cell in row.cells %}
<td class="{{ cell.align }}">{{ cell.text }}</td>{% endfor %}</tr>
{% endfor %}
</table></div>
{% endif %}
{% if table.caption %}<p class="dim">{{ table.caption }}</p>{% endif %}
{% endfor %}
<h2>what to know</h2>
<ul>{% for line in lines %}<li>{{ line }}</li>{% endfor %}</ul>
</html>
"""


def write_page(record: RunRecord, path: str | Path | None = None) -> Path:
    """Write a run's figures as one HTML page.

    Args:
        record: of the run, finished or not.
        path: the file; None for `report.html` in the run's folder.

    Returns:
        The file.

    Raises:
        ShoalError: jinja2 is not installed.
        RunError: the file cannot be written.
    """
    try:
        from jinja2 import Environment
    except ImportError as error:
        raise missing_extra("jinja2", "report", "a report as a page") from error
    template = Environment(autoescape=True, trim_blocks=True).from_string(_TEMPLATE)
    text = template.render(
        name=record.folder.resolve().name,
        finished=record.finished,
        tables=_parts(record),
        lines=outcome_lines(record),
    )
    target = record.folder / PAGE if path is None else Path(path).expanduser()
    write_file(target, text)
    return target


def _parts(record: RunRecord) -> list[dict[str, Any]]:
    """Return the tables of the page, those of the terminal, with the curve before the steps."""
    tables: list[Table | None] = [comparison_table(record)]
    tables.append(latency_table(record.latency.get("runtimes", [])))
    if record.energy:
        tables.append(energy_table(record))
    parts = [_plain(table) for table in tables if table is not None]
    parts.append({**_plain(steps_table(record)), "title": "steps", "figure": _curve(record)})
    if record.merge:
        merge = MergeReport.from_dict(record.merge)
        parts += [_plain(merged_table(merge)), _plain(boundaries_table(merge))]
    return parts


def _plain(table: Table) -> dict[str, Any]:
    """Return a table of the terminal as plain text with its alignment."""
    aligned = ["right" if column.justify == "right" else "" for column in table.columns]
    columns = [[_text(cell) for cell in column.cells] for column in table.columns]
    rows = zip(*columns, strict=True) if columns else []
    heads = [
        {"text": _text(column.header), "align": align}
        for column, align in zip(table.columns, aligned, strict=True)
    ]
    return {
        "title": _text(table.title or ""),
        "caption": _text(table.caption or ""),
        "heads": heads,
        "rows": [
            {
                "style": str(style.style or ""),
                "cells": [{"text": t, "align": a} for t, a in zip(row, aligned, strict=True)],
            }
            for row, style in zip(rows, table.rows, strict=True)
        ],
    }


def _text(cell: Any) -> str:
    return cell.plain if isinstance(cell, Text) else Text.from_markup(str(cell)).plain


def _curve(record: RunRecord) -> str:
    """Return accuracy against latency, step by step, as SVG; nothing without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return ""
    figure = Figure(figsize=(7.0, 3.4), layout="constrained")
    axes = figure.subplots()
    shares = [1.0 / step.latency_ratio for step in record.steps]
    for label, name in (("validation", "top1_val"), ("test", "top1_test")):
        values = [getattr(step.metrics, name) for step in record.steps]
        if None not in values:
            axes.plot(shares, values, marker="o", markersize=4, label=label)
    for share, step in zip(shares, record.steps, strict=True):
        axes.annotate(str(step.step), (share, step.metrics.top1_val), fontsize=7,
                      xytext=(3, 4), textcoords="offset points")  # fmt: skip
    axes.axvline(1.0 / record.chosen.latency_ratio, color="0.7", linestyle=":", zorder=0)
    axes.set_xlabel("latency, share of dense's (merged, of dense with its batch norms folded)")
    axes.set_ylabel("top-1 (%)")
    axes.invert_xaxis()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg")
    return drawn.getvalue()[drawn.getvalue().index("<svg") :]
