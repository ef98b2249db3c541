"""Networks side by side, in tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass
from typing import Any

from shoal.measure import SideBySide
from shoal.report.latency_tables import latency_table, runtime_notes
from shoal.report.table import Column, Row, Table, quality_title, unit_of


@dataclass(frozen=True)
class Compared:
    """The figures of one network, in the order of the table's columns.

    Qualities are in points, of a classifier top-1 in percent; None where there are no data, or no
    test data.
    """

    name: str
    top1_val: float | None
    top1_test: float | None
    sites_left: int
    depth: int
    macs: int
    params: int
    relus: int | None = None  # rectifier evaluations of one sample


@dataclass(frozen=True)
class Comparison:
    """Several networks side by side; the first as given stands before them where it was folded."""

    networks: Sequence[Compared]
    latencies: Sequence[Sequence[SideBySide]]  # of each batch size, in each runtime
    data: str  # what the qualities were measured on, in words
    notes: Sequence[str]
    quality_name: str = "top-1"
    quality_unit: str = "%"

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "networks": [asdict(found) for found in self.networks],
            "latency": [[one.to_dict() for one in batch] for batch in self.latencies],
            "data": self.data,
            "notes": list(self.notes),
            "quality_name": self.quality_name,
        }


def comparison_tables(found: Comparison) -> list[Table]:
    """Return the table of figures, and one of latencies for each batch size."""
    unit = unit_of(found.quality_unit)
    columns = (
        Column("network", align="left"),
        *(
            Column(quality_title(part, found.quality_name), unit, meaning=f"on {part} data")
            for part in ("validation", "test")
        ),
        Column("rectifiers", meaning="rectifiers that are left", priority=2),
        Column("depth", meaning="layers with weights on the longest path"),
        Column("MACs", "count", meaning="multiply-accumulates of one sample"),
        Column("parameters", "count", priority=1),
        Column("evaluations", "count", "right", "of rectifiers, for one sample", 3),
    )
    figures = Table("networks", columns, tuple(Row(astuple(one)) for one in found.networks))
    names = {one.name: one.name for one in found.networks}
    timed = (latency_table([one.to_dict() for one in batch], names) for batch in found.latencies)
    return [figures, *(table for table in timed if table is not None)]


def comparison_lines(found: Comparison) -> list[str]:
    """Return what to say under the tables."""
    measured = [one.to_dict() for batch in found.latencies[:1] for one in batch]
    missing = runtime_notes(measured, {one.name: one.name for one in found.networks})
    return [
        "every network is timed as it would be used: a run's result merged, any other with its "
        "batch norms and lines folded",
        *([f"{found.quality_name}: {found.data}"] if found.data else []),
        *(f"note: {note}" for note in [*found.notes, *missing]),
    ]
