"""What a network costs on this machine, beside its baseline, in a table."""

from __future__ import annotations

from shoal.measure import Benchmark
from shoal.report.latency_tables import quotient
from shoal.report.table import Cell, Column, Quantity, Row, Table

__all__ = ["benchmark_table"]


def benchmark_table(found: Benchmark) -> Table:
    """Return latency, throughput, work, parameters and depth; ratios where there is a baseline."""
    base = found.baseline
    every = [found, *([] if base is None else [base])]
    ratios: tuple[Cell, ...] = ("", "", "", "", "")
    if base is not None and found.speedup is not None:
        times = (found.macs_ratio, found.params_ratio)
        work, params = (None if value is None else Quantity(value, "×") for value in times)
        ratios = (quotient(found.speedup.to_dict()), "", work, params, "")
    rows: list[tuple[Cell, ...]] = [
        ("latency", *(str(one.latency) for one in every)),
        ("samples per second", *(_four_digits(one.latency.images_per_second) for one in every)),
        ("work, MACs per sample", *(Quantity(one.macs, "count") for one in every)),
        ("parameters", *(Quantity(one.params, "count") for one in every)),
        ("depth, layers", *("unknown" if one.depth is None else one.depth for one in every)),
    ]
    heads = ["network", *([] if base is None else ["baseline", "baseline / network"])]
    if base is not None:
        rows = [(*row, ratio) for row, ratio in zip(rows, ratios, strict=True)]
    return Table(
        "",
        (Column("", align="left"), *map(Column, heads)),
        tuple(map(Row, rows)),
        tuple(_notes(found)),
    )


def _four_digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _notes(found: Benchmark) -> list[str]:
    latency = found.latency
    threads = f"{latency.threads} thread{'s' if latency.threads != 1 else ''}"
    notes = [
        f"batch {found.batch_size} on {latency.device}, {threads}; median (quartiles) of "
        f"{latency.samples} rounds"
    ]
    if found.baseline is not None:
        notes.append("baseline / network: above 1 is faster or smaller; of latency the median over "
                     "pairs of rounds, with its 95 % interval")  # fmt: skip
    if found.uncounted:
        notes.append(f"work without {', '.join(found.uncounted)}")
    return notes
