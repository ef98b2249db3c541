"""Networks side by side, in tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.markup import escape
from rich.table import Table

from shoal.measure import SideBySide
from shoal.report.latency_tables import latency_table, runtime_notes
from shoal.report.wording import amount, percent

__all__ = ["Compared", "Comparison", "comparison_lines", "comparison_tables"]


@dataclass(frozen=True)
class Compared:
    """The figures of one network.

    Attributes:
        name: what it is called in the tables.
        top1_val: validation accuracy in percent; None where there are no data.
        top1_test: test accuracy in percent; None where there are no test data.
        sites_left: rectifiers that are not linearized.
        depth: layers with weights on the longest path.
        macs: multiply-accumulates of one sample.
        params: number of parameter elements.
    """

    name: str
    top1_val: float | None
    top1_test: float | None
    sites_left: int
    depth: int
    macs: int
    params: int

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Comparison:
    """Several networks side by side.

    Attributes:
        networks: the figures of each, the first one's as given before them where it was folded.
        latencies: of each batch size, in each runtime.
        data: what the accuracies were measured on, in words; empty for nothing.
        notes: what the user should know.
    """

    networks: Sequence[Compared]
    latencies: Sequence[Sequence[SideBySide]]
    data: str
    notes: Sequence[str]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "networks": [found.to_dict() for found in self.networks],
            "latency": [[one.to_dict() for one in batch] for batch in self.latencies],
            "data": self.data,
            "notes": list(self.notes),
        }


def comparison_tables(found: Comparison) -> list[Table]:
    """Return the table of figures, and one of latencies for each batch size."""
    names = _names(found)
    tables = [_figures(found.networks)]
    for batch in found.latencies:
        table = latency_table([one.to_dict() for one in batch], names)
        if table is not None:
            tables.append(table)
    return tables


def comparison_lines(found: Comparison) -> list[str]:
    """Return what is to be said under the tables."""
    lines = [
        "every network is timed as it would be used: a run's result merged, any other with its "
        "batch norms and lines folded; ratio: median and quartiles over the rounds, above 1 is "
        "faster"
    ]
    if found.data:
        lines.append(f"top-1: {found.data}")
    lines += [f"note: {note}" for note in found.notes]
    missing = [one.to_dict() for batch in found.latencies[:1] for one in batch]
    return [*lines, *(f"note: {note}" for note in runtime_notes(missing, _names(found)))]


def _names(found: Comparison) -> Mapping[str, str]:
    return {one.name: escape(one.name) for one in found.networks}


def _figures(networks: Sequence[Compared]) -> Table:
    table = Table(title="networks", title_justify="left", title_style="bold", header_style="dim")
    table.add_column("", overflow="fold")
    for head in ("validation", "test", "rectifiers left", "depth", "MACs", "parameters"):
        table.add_column(head, justify="right", no_wrap=True)
    for one in networks:
        table.add_row(
            escape(one.name),
            percent(one.top1_val),
            percent(one.top1_test),
            str(one.sites_left),
            str(one.depth),
            amount(one.macs),
            amount(one.params),
        )
    return table
