"""Tables as HTML, for pages and notebooks."""

from __future__ import annotations

from html import escape

from shoal.report.table import Column, Table, is_best


def html_table(table: Table) -> str:
    """Return a table as HTML, with its title above and its notes below."""
    lines = [f"<h2>{escape(table.title)}</h2>"] if table.title else []
    heads = "".join(_head(column) for column in table.columns)
    lines += ['<div class="shoal" tabindex="0">', "<table>", f"<thead><tr>{heads}</tr></thead>"]
    lines += ["<tbody>"]
    for row, texts in zip(table.rows, table.texts(), strict=True):
        names = " ".join(filter(None, [row.tone, "last" if row.last else ""]))
        best = map(is_best, row.cells)
        cells = "".join(map(_cell, table.columns, texts, best))
        lines.append(f"<tr{_class(names)}>{cells}</tr>")
    lines += ["</tbody>", "</table>", "</div>"]
    lines += [f'<p class="note">{escape(note)}</p>' for note in table.notes]
    return "\n".join(lines)


def _head(column: Column) -> str:
    title = f' title="{escape(column.meaning)}"' if column.meaning else ""
    return f"<th{_class(column.align)}{title}>{escape(column.name)}</th>"


_SHORT = 24  # characters that are not worth a second line


def _cell(column: Column, text: str, best: bool) -> str:
    shown = escape(text)
    if column.align == "right":  # on a phone, an interval or a doubt stands below its figure
        shown = shown.replace(" (", ' <br class="narrow">(').replace(", ", ', <br class="narrow">')
        return f'<td class="right{" strong" if best else ""}">{shown}</td>'
    if len(text) <= _SHORT:
        return f'<td class="short">{shown}</td>'
    return f'<td class="long">{shown.replace(".", ".<wbr>")}</td>'  # names break at their dots


def _class(names: str) -> str:
    return f' class="{names}"' if names not in ("", "left") else ""
