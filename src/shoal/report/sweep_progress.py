"""A sweep on the screen while it runs: a table that moves on a terminal, lines anywhere else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text
from typing_extensions import override

from shoal.display import counted, print_lines
from shoal.errors import one_line
from shoal.report.progress import console_in_python
from shoal.report.sweep_tables import (
    cell_title,
    cells_table,
    count_words,
    quality_words,
    removed_words,
    state_words,
)
from shoal.report.table import UNITS, Table
from shoal.report.terminal import drawn, fitting
from shoal.sweep import CellState, SweepListener

_BESIDE = 6  # lines that the head of the table, the count and the prompt take
_WORTH = ("running", "failed", "waiting", "done")  # what is shown first where not all have room


def progress_in_python() -> AbstractContextManager[SweepListener]:
    """Show a sweep where Python runs: a table in a terminal, lines in a notebook or a file."""
    return showing(console_in_python())


@contextmanager
def showing(console: Console) -> Iterator[SweepListener]:
    """Yield the listener that fits the console; the table is cleared away at the end."""
    if console.quiet:
        yield SweepListener()
    elif console.is_terminal:
        # Latency is measured meanwhile; a busy screen would disturb it.
        with Live(console=console, transient=True, refresh_per_second=1) as live:
            yield _Moving(console, live)
    else:
        yield SweepLines(console)


class SweepLines(SweepListener):
    """Prints a line whenever a cell begins, has finished a step, ends or fails."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._seen: dict[str, CellState] = {}

    @override
    def begun(self, where: str, cells: Sequence[CellState]) -> None:
        print_lines(
            self.console, f"{counted(len(cells), 'cell')}, {count_words(cells)}; run {where}"
        )
        self._seen = {cell.name: replace(cell, seconds=0.0) for cell in cells}

    @override
    def now(self, cells: Sequence[CellState]) -> None:
        for cell in cells:
            before = self._seen.get(cell.name)
            still = replace(cell, seconds=0.0)
            if still != before:
                self._seen[cell.name] = still
                if cell.state == "waiting" and cell.tries < 2:  # for its process to begin
                    continue
                print_lines(self.console, cell_line(cell))


def cell_line(cell: CellState) -> str:
    """Return a line on how far a cell has come."""
    line = f"{cell_title(cell)}: {state_words(cell)}"
    found = cell.glance
    if found is None or cell.failed:
        return line
    removed = f"removed {removed_words(cell)}, " if found.step else ""
    ratio = f", {UNITS['×'](found.ratio)} as fast" if found.step and found.certain else ""
    return f"{line}; step {found.step}: {removed}validation {quality_words(cell)}{ratio}"


class _Moving(SweepListener):
    """Keeps a table of the cells in sight, those that run first where not all have room."""

    def __init__(self, console: Console, live: Live) -> None:
        self.console = console
        self.live = live

    @override
    def begun(self, where: str, cells: Sequence[CellState]) -> None:
        print_lines(self.console, f"{counted(len(cells), 'cell')}, run {where}")
        self.now(cells)

    @override
    def now(self, cells: Sequence[CellState]) -> None:
        self.live.update(picture(cells, self.console.width, self.console.height))


def picture(cells: Sequence[CellState], width: int, height: int) -> Group:
    """Return the table of the cells that have room, a line each, with the count of all below."""
    room = max(1, height - _BESIDE)
    first = sorted(cells, key=lambda cell: _WORTH.index(cell.state))[:room]
    names = {cell.name for cell in first}
    shown = [cell for cell in cells if cell.name in names]
    hidden = len(cells) - len(shown)
    more = f"; {hidden} more have no room here" if hidden else ""
    table = fitting(_in_lines(cells_table(shown), width), width, unbroken=True)
    count = Text(f"{count_words(cells)}{more}", style="dim", overflow="ellipsis")
    return Group(drawn(table, width), count)


def _in_lines(table: Table, width: int) -> Table:
    """Return the table with its texts cut short, so that a row is a line; the final one has all."""
    title, state = 3 * width // 8, width // 5
    rows = (
        replace(row, cells=(_middle(str(a), title), one_line(str(b), state), *rest))
        for row in table.rows
        for a, b, *rest in [row.cells]
    )
    return replace(table, rows=tuple(rows))


def _middle(text: str, most: int) -> str:
    """Return a text without its middle where it is too long: names differ at both ends."""
    half = (most - 1) // 2
    return text if len(text) <= most else f"{text[:half]}…{text[-half:]}"
