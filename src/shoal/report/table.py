"""A table that knows no renderer: columns, rows of plain values, and notes.

`terminal`, `markdown` and `html` show it. What is said of a run, a merge or a network is put
together once, here, and reads alike wherever it is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from shoal.display import harmless, three_digits
from shoal.search.figures import TOP1
from shoal.search.records import Metrics

DONE = {"linearize": "linearized", "drop": "dropped", "collapse": "collapsed"}


def amount(number: float) -> str:
    """Return a count with four digits and a prefix: 1820000000 is "1.82 G"."""
    for factor, prefix in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= factor:
            return f"{number / factor:.4g} {prefix}"
    return str(int(number))


def percent(value: float | None) -> str:
    """Return an accuracy in percent, or a dash."""
    return "–" if value is None else f"{value:.2f} %"


def points(value: float) -> str:
    """Return a difference of accuracies in percentage points, with its sign."""
    return f"{signed(value)} points"


def signed(value: float) -> str:
    """Return a difference with its sign, for a column that says its unit."""
    value = 0.0 if abs(value) < 0.005 else value  # no "-0.00"
    return f"{value:+.2f}"


def quality_unit(metrics: Metrics) -> str:
    """Return the key of `UNITS` by which a network's quality is written."""
    return unit_of(metrics.quality_unit)


def unit_of(quality_unit: str) -> str:
    """Return the key of `UNITS` by which a quality in this unit is written."""
    return "%" if quality_unit == "%" else "quality"


def quality_title(part: str, name: str) -> str:
    """Return what a column of qualities on a part of the data is called: top-1 goes without."""
    return part if name == TOP1 else f"{part} {name}"


def duration(seconds: float) -> str:
    """Return a time as "8.5 s", "3 min 20 s" or "2 h 5 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


UNITS: Mapping[str, Callable[[float], str]] = MappingProxyType(
    {
        "": str,
        "count": amount,
        "%": percent,
        "quality": "{:.2f}".format,
        "points": points,
        "signed": signed,
        "s": duration,
        "ms": lambda value: f"{three_digits(value)} ms",
        "×": "{:.2f} ×".format,
        "score": "{:#.4g}".format,
        "error": "{:.2g}".format,
        "Wh": lambda value: f"{three_digits(value)} Wh",
        "g": lambda value: f"{three_digits(value)} g",
    }
)
"""How a number is written, by its unit; "count" is for MACs and parameters, as in 68.86 M."""


@dataclass(frozen=True)
class Quantity:
    """A number with its unit.

    Attributes:
        value: the number.
        unit: a key of `UNITS`. A ratio ("×") is dense / this: above 1 is faster or smaller.
        low: lower end of its 95 % interval, where it was measured with one.
        high: the upper end.
        sure: whether it is certain; what is not gets a question mark.
        trusted: whether the machine was calm when it was measured; else no interval is shown, since
            the next run would not bear it out.
        spread: its standard deviation, as over seeds; None of a single value.
        best: whether it is the best of its kind in the table.
    """

    value: float
    unit: str
    low: float | None = None
    high: float | None = None
    sure: bool = True
    trusted: bool = True
    spread: float | None = None
    best: bool = False

    def __str__(self) -> str:
        """Return it as people read it; a ratio whose interval holds 1 is not claimed."""
        text = UNITS[self.unit](self.value)
        if self.spread is not None:
            number, _, unit = text.partition(" ")
            spread = UNITS[self.unit](self.spread).partition(" ")[0].lstrip("+")
            text = f"{number} ± {spread} {unit}".rstrip()
        if not self.trusted:
            return f"{text}, not to be trusted"
        if self.low is not None and self.high is not None:
            spread = f"({self.low:.2f} to {self.high:.2f})"
            text = f"not certain {spread}" if self.low <= 1 <= self.high else f"{text} {spread}"
        return text if self.sure else f"{text} ?"


Cell = str | int | float | Quantity | None


def is_best(cell: Cell) -> bool:
    """Return whether a cell is the best of its kind in its table."""
    return isinstance(cell, Quantity) and cell.best


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        name: its heading.
        unit: of cells that are bare numbers, a key of `UNITS`.
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
            return harmless(str(cell))
        return UNITS[self.unit](cell)


def text_columns(*names: str) -> tuple[Column, ...]:
    """Return columns of text."""
    return tuple(Column(name, align="left") for name in names)


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


def ratio_row(name: str, unit: str, before: float, after: float, *, last: bool) -> Row:
    """Return the row of two figures and of how many times smaller the second one is."""
    ratio: Cell = Quantity(before / after, "×") if after else None
    pair = (Quantity(before, unit), Quantity(after, unit))
    return Row((name, *pair, "same" if before == after else ratio), last=last)


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
        columns = self.columns[:place] + self.columns[place + 1 :]
        cells = [row.cells[:place] + row.cells[place + 1 :] for row in self.rows]
        rows = tuple(replace(row, cells=c) for row, c in zip(self.rows, cells, strict=True))
        return replace(self, columns=columns, rows=rows)
