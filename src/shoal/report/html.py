"""Tables as HTML: for the page of a run, and for notebooks by `_repr_html_`."""

from __future__ import annotations

from html import escape

from shoal.report.table import Column, Table

__all__ = ["STYLE", "html_table"]

STYLE = """
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
"""
"""The rules that a page with such tables needs."""


def html_table(table: Table, *, heading: str = "h2", style: bool = False) -> str:
    """Return a table as HTML, with its title above and its notes below.

    Args:
        table: to show.
        heading: the element of the title.
        style: whether the rules of `STYLE` come with it, for a place that has none of its own.
    """
    lines = [f"<style>{STYLE}</style>"] if style else []
    if table.title:
        lines.append(f"<{heading}>{escape(table.title)}</{heading}>")
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
    return f"<th{_class(_align(column))}{title}>{escape(column.name)}</th>"


def _cell(column: Column, text: str) -> str:
    shown = escape(text)
    if column.align == "right":  # on a phone, an interval stands below its figure
        shown = shown.replace(" (", ' <br class="narrow">(')
    return f"<td{_class(_align(column))}>{shown}</td>"


def _align(column: Column) -> str:
    return "right" if column.align == "right" else ""


def _class(names: str) -> str:
    return f' class="{names}"' if names else ""
