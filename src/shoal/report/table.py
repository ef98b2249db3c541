"""A table that knows no renderer: columns, rows of plain values, and notes.

`terminal`, `markdown` and `html` show it. What is said of a run, a merge or a network is put
together once, here, and reads alike wherever it is shown.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from shoal.report.wording import UNITS

__all__ = ["Cell", "Column", "Quantity", "Row", "Table"]

T = TypeVar("T")


@dataclass(frozen=True)
class Quantity:
    """A number with its unit.

    Attributes:
        value: the number.
        unit: a key of `wording.UNITS`. A ratio ("×") is dense / this: above 1 is faster or smaller.
        low: lower end of its 95 % interval, where it was measured with one.
        high: the upper end.
        sure: whether it is certain; what is not gets a question mark.
    """

    value: float
    unit: str
    low: float | None = None
    high: float | None = None
    sure: bool = True

    def __str__(self) -> str:
        """Return it as people read it; a ratio whose interval holds 1 is not claimed."""
        text = UNITS[self.unit](self.value)
        if self.low is not None and self.high is not None:
            spread = f"({self.low:.2f} to {self.high:.2f})"
            text = f"not certain {spread}" if self.low <= 1 <= self.high else f"{text} {spread}"
        return text if self.sure else f"{text} ?"


Cell = str | int | float | Quantity | None


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        name: its heading.
        unit: of cells that are bare numbers, a key of `wording.UNITS`.
        align: "left" for text, which may wrap, "right" for figures, which never do.
        meaning: what the figures are, where the heading alone does not say it.
        priority: 0 is shown at every width; of the others the highest is left out first.
    """

    name: str
    unit: str = ""
    align: Literal["left", "right"] = "right"
    meaning: str = ""
    priority: int = 0

    def text(self, cell: Cell) -> str:
        """Return a cell of this column as text; a dash for what is not known."""
        if cell is None:
            return "–"
        if isinstance(cell, str | Quantity):
            return str(cell)
        return UNITS[self.unit](cell)


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        cells: one for each column.
        tone: "strong" for what the reader looks for, "faint" for what does not count.
        last: whether a group of rows ends here.
    """

    cells: tuple[Cell, ...]
    tone: Literal["", "strong", "faint"] = ""
    last: bool = False


@dataclass(frozen=True)
class Table:
    """Figures in columns and rows.

    Attributes:
        title: what it shows.
        columns: from left to right.
        rows: from top to bottom.
        notes: what has to be said under it, a sentence or two each.

    Example:
        >>> sizes = Table("sizes", (Column("", align="left"), Column("MACs", "count")),
        ...               (Row(("dense", 68_860_000)), Row(("result", None))))
        >>> sizes.texts()
        [['dense', '68.86 M'], ['result', '–']]
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    def texts(self) -> list[list[str]]:
        """Return the cells of all rows as text."""
        return [
            [column.text(cell) for column, cell in zip(self.columns, row.cells, strict=True)]
            for row in self.rows
        ]

    def without(self, place: int) -> Table:
        """Return the table without the column at that place, from 0."""
        rows = tuple(replace(row, cells=_skip(row.cells, place)) for row in self.rows)
        return replace(self, columns=_skip(self.columns, place), rows=rows)


def _skip(values: tuple[T, ...], place: int) -> tuple[T, ...]:
    return values[:place] + values[place + 1 :]
