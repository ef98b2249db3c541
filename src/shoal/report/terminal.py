"""Tables on a terminal, as wide as it is: what has no room is left out, and a note names it."""

from __future__ import annotations

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from shoal.display import broken, folded_text, harmless, longest_part
from shoal.report.table import Table, is_best

_BETWEEN = 3  # characters between two columns
_LEAST_TEXT = 20  # characters below which a column of text is not squeezed
_STYLES = {"strong": "bold", "faint": "dim", "": ""}


def print_table(console: Console, table: Table, *, verbose: bool = False) -> None:
    """Print a table with its notes; the console's width decides which columns are shown.

    With `verbose` all are, even if the lines are then wider than the console.
    """
    shown = table if verbose else fitting(table, console.width)
    if table.title:
        _print(console, table.title, "bold")
    console.print(drawn(shown, console.width), crop=False)
    left_out = [column.name for column in table.columns if column not in shown.columns]
    notes = list(table.notes)
    if left_out:
        between = "; " if any("," in name for name in left_out) else ", "
        notes.append(f"left out for lack of room: {between.join(left_out)}; --verbose shows all")
    for note in notes:
        _print(console, note, "dim")
    console.print()


def drawn(table: Table, width: int) -> RichTable:
    """Return a table that fits the width as rich draws it, without its title and notes."""
    widths = _widths(table, width)
    made = RichTable(header_style="dim", box=box.SIMPLE_HEAD, show_edge=False, width=_whole(widths))
    for column, wide in zip(table.columns, widths, strict=True):
        made.add_column(_cell(column.name, wide), justify=column.align, no_wrap=True, width=wide)
    for row, texts in zip(table.rows, table.texts(), strict=True):
        cells = map(_cell, texts, widths, map(is_best, row.cells))
        made.add_row(*cells, style=_STYLES[row.tone], end_section=row.last)
    return made


def _print(console: Console, text: str, style: str) -> None:
    for line in broken(harmless(text), console.width):
        console.print(line, markup=False, style=style, soft_wrap=True)


def _cell(text: str, width: int, best: bool = False) -> str:
    shown = escape("\n".join(folded_text(text, width)))
    return f"[bold]{shown}[/bold]" if best else shown


def fitting(table: Table, width: int, *, unbroken: bool = False) -> Table:
    """Return the table without the columns that have no room, the least important first.

    With `unbroken` no text is broken to make room.
    """
    needed = _natural if unbroken else _least
    while _whole(needed(table)) > width:
        priorities = [column.priority for column in table.columns]
        if not any(priorities):
            break
        table = table.without(priorities.index(max(priorities)))
    return table


def _widths(table: Table, width: int) -> list[int]:
    """Return how wide each column is: figures as they are, and text as far as there is room."""
    widths, wanted = _least(table), _natural(table)
    if _whole(widths) > width:  # rather than leave the screen, names break in their parts
        widths = [
            min(least, _LEAST_TEXT) if column.align == "left" else least
            for column, least in zip(table.columns, widths, strict=True)
        ]
    while _whole(widths) < width and widths != wanted:
        short = [place for place, least in enumerate(widths) if least < wanted[place]]
        for place in short[: width - _whole(widths)]:
            widths[place] += 1
    return widths


def _natural(table: Table) -> list[int]:
    """Return how wide each column is when nothing is broken."""
    return [
        max(map(cell_len, [column.name, *texts]))
        for column, *texts in zip(table.columns, *table.texts(), strict=True)
    ]


def _least(table: Table) -> list[int]:
    """Return how wide each column has to be so that no part of a name is broken."""
    widths = []
    columns = zip(table.columns, _natural(table), *table.texts(), strict=True)
    for column, natural, *texts in columns:
        parts = max(map(longest_part, [column.name, *texts]))
        least = min(natural, max(_LEAST_TEXT, parts))
        widths.append(least if column.align == "left" else natural)
    return widths


def _whole(widths: list[int]) -> int:
    return sum(widths) + _BETWEEN * (len(widths) - 1) + 2  # and one at either end
