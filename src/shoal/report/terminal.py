"""Tables on a terminal, as wide as it is: what has no room is left out, and a note names it."""

from __future__ import annotations

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from shoal.report.table import Table

_BETWEEN = 3  # characters between two columns
_LEAST_TEXT = 20  # characters below which a column of text is not squeezed
_STYLES = {"strong": "bold", "faint": "dim", "": ""}


def print_table(console: Console, table: Table, *, verbose: bool = False) -> None:
    """Print a table with its notes; the console's width decides which columns are shown.

    With `verbose` all are, even if the lines are then wider than the console.
    """
    shown = table if verbose else _fitting(table, console.width)
    if table.title:
        console.print(table.title, markup=False, style="bold")
    drawn = RichTable(header_style="dim", box=box.SIMPLE_HEAD, show_edge=False)
    for column in shown.columns:
        wraps = column.align == "left"
        drawn.add_column(
            escape(column.name), justify=column.align, no_wrap=not wraps, overflow="fold"
        )
    for row, texts in zip(shown.rows, shown.texts(), strict=True):
        drawn.add_row(*map(escape, texts), style=_STYLES[row.tone], end_section=row.last)
    if (least := _least_width(shown)) > console.width:
        drawn.width = least
    console.print(drawn, crop=False)
    left_out = [column.name for column in table.columns if column not in shown.columns]
    notes = list(table.notes)
    if left_out:
        notes.append(f"left out for lack of room: {', '.join(left_out)}; --verbose shows all")
    for note in notes:
        console.print(note, markup=False, style="dim")
    console.print()


def _fitting(table: Table, width: int) -> Table:
    """Return the table without the columns that have no room, the least important first."""
    while _least_width(table) > width:
        priorities = [column.priority for column in table.columns]
        if not any(priorities):
            break
        table = table.without(priorities.index(max(priorities)))
    return table


def _least_width(table: Table) -> int:
    """Return how wide the table is when all that may wrap does."""
    widths = []
    for column, *texts in zip(table.columns, *table.texts(), strict=True):
        width = max(map(cell_len, [column.name, *texts]))
        widths.append(min(width, _LEAST_TEXT) if column.align == "left" else width)
    return sum(widths) + _BETWEEN * (len(widths) - 1) + 2  # and one at either end
