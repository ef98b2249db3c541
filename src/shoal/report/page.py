"""A run as one HTML page that needs nothing beside it. It needs jinja2, and matplotlib to draw."""

from __future__ import annotations

import io
from html import escape
from pathlib import Path

from shoal.errors import missing_extra
from shoal.files import write_file
from shoal.report.front_table import front_table
from shoal.report.merge_tables import merge_tables
from shoal.report.run_tables import headline, outcome_lines, outcome_tables, steps_table
from shoal.report.slower import slower_lines
from shoal.report.table import Column, Table
from shoal.search.records import RunRecord

_TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>shoal: {{ name }}</title>
<style>
  body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem;
         color: #1b2733; }
  h1 { font-size: 1.4rem; } h2 { font-size: 1.05rem; margin: 2.2rem 0 .6rem; }
  svg { max-width: 100%; height: auto; } li { margin: .3rem 0; overflow-wrap: anywhere; }
  ul { padding-left: 1.2rem; } summary { margin-top: 2.2rem; font-weight: 700; cursor: pointer; }
  .shoal table { font-size: .93em; }
  @media (max-width: 40rem) { body { font-size: 14px; margin-top: 1rem; } }
  .shoal { overflow-x: auto; }
  .shoal table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
  .shoal th, .shoal td { padding: .3rem .7rem .3rem 0; text-align: left; vertical-align: top; }
  .shoal th { color: #5b6b7a; font-weight: 600; border-bottom: 1px solid #b8c4cf; }
  .shoal .right { text-align: right; white-space: nowrap; }
  .shoal .strong { font-weight: 700; }
  .shoal .faint, .shoal p { color: #6b7988; }
  .shoal .last:not(:last-child) td { border-bottom: 1px solid #e3e9ee; }
  .shoal .narrow { display: none; }
  @media (max-width: 40rem) { .shoal .narrow { display: inline; } }
</style>
</head>
<body>
<h1>{{ name }}{% if not finished %}: not finished yet{% endif %}</h1>
{% for line in slower %}<p><strong>{{ line }}</strong></p>{% endfor %}
{% if finished %}<p>{{ headline }}</p>{% endif %}

{% for table in tables %}{{ table | safe }}
{% endfor %}
<h2>what to know</h2>
<ul>{% for line in lines %}<li>{{ line }}</li>{% endfor %}</ul>
{{ curve | safe }}
{{ steps | safe }}
{{ front | safe }}
{% if merge %}<details><summary>what was merged, and what was kept and why</summary>
{% for table in merge %}{{ table | safe }}
{% endfor %}</details>{% endif %}
</body>
</html>
"""


def write_page(record: RunRecord, path: str | Path | None = None) -> Path:
    """Write a run's figures as one HTML page, and return its path.

    Args:
        record: of the run, finished or not.
        path: the file; None for `report.html` in the run's folder.

    Raises:
        ShoalError: jinja2 is not installed.
        FileError: the file cannot be written.
    """
    try:
        from jinja2 import Environment
    except ImportError as error:
        raise missing_extra("jinja2", "report", "a report as a page") from error
    template = Environment(autoescape=True, trim_blocks=True).from_string(_TEMPLATE)
    folder = record.folder or Path()
    merge = [] if record.merge is None else merge_tables(record.merge)
    text = template.render(
        name=folder.resolve().name,
        finished=record.finished,
        slower=slower_lines(record),
        headline=headline(record),
        tables=map(html_table, outcome_tables(record)),
        lines=outcome_lines(record),
        curve=_curve(record),
        steps=html_table(steps_table(record)),
        front=html_table(front_table(record)),
        merge=[html_table(table) for table in merge],
    )
    target = folder / "report.html" if path is None else Path(path).expanduser()
    write_file(target, text)
    return target


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
    unit = record.dense.quality_unit
    axes.set_ylabel(record.dense.quality_name + (f" ({unit})" if unit else ""))
    axes.invert_xaxis()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg")
    return drawn.getvalue()[drawn.getvalue().index("<svg") :]


def html_table(table: Table) -> str:
    """Return a table as HTML, with its title above and its notes below."""
    lines = [f"<h2>{escape(table.title)}</h2>"] if table.title else []
    heads = "".join(_head(column) for column in table.columns)
    lines += ['<div class="shoal"><table>', f"<thead><tr>{heads}</tr></thead>", "<tbody>"]
    for row, texts in zip(table.rows, table.texts(), strict=True):
        names = " ".join(filter(None, [row.tone, "last" if row.last else ""]))
        cells = "".join(map(_cell, table.columns, texts))
        lines.append(f"<tr{_class(names)}>{cells}</tr>")
    lines += ["</tbody>", "</table>"]
    lines += [f"<p>{escape(note)}</p>" for note in table.notes]
    return "\n".join([*lines, "</div>"])


def _head(column: Column) -> str:
    title = f' title="{escape(column.meaning)}"' if column.meaning else ""
    return f"<th{_class(column.align)}{title}>{escape(column.name)}</th>"


def _cell(column: Column, text: str) -> str:
    shown = escape(text)
    if column.align == "right":  # on a phone, an interval stands below its figure
        shown = shown.replace(" (", ' <br class="narrow">(')
    return f"<td{_class(column.align)}>{shown}</td>"


def _class(names: str) -> str:
    return f' class="{names}"' if names not in ("", "left") else ""
