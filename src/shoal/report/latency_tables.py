"""Latencies in tables: of dense and result in each runtime, and of one network and its baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shoal.measure import Benchmark
from shoal.report.table import Cell, Column, Quantity, Row, Table, text_columns

_NETWORKS = {
    "dense": "dense as given",
    "dense_folded": "dense, norms folded",
    "result": "result as trained",
    "result_merged": "result merged",
}
_RUNTIMES = {"eager": "PyTorch", "onnxruntime": "ONNX Runtime"}


def latency_table(
    runtimes: Sequence[Mapping[str, Any]], names: Mapping[str, str] = _NETWORKS
) -> Table | None:
    """Return the table of networks, runtime by runtime; None where nothing was measured.

    It shows what `SideBySide.to_dict` gives, of one batch size, under the names and in their order.
    """
    shown = [found for found in runtimes if found["latency"]]
    if not shown:
        return None
    known = names is _NETWORKS
    baseline = "dense with its batch norms folded" if known else names[shown[0]["baseline"]]
    ratio = f"{'dense' if known else 'baseline'} / this"
    meaning = f"latency of {baseline} over this one's, with its 95 % interval"
    places = [_place(next(iter(found["latency"].values()))) for found in shown]
    shared = places[0] if len(set(places)) == 1 else ""
    rows = []
    for found, place in zip(shown, places, strict=True):
        here = [name for name in names if name in found["latency"]]
        where = f"{runtime_name(found['runtime'])}{'' if shared else place}"
        for name in here:
            own = "1" if name == found["baseline"] else quotient(found["ratio"][name])
            time = found["latency"][name]["median_ms"]
            cells = (where if name == here[0] else "", names[name], time, own)
            rows.append(Row(cells, last=name == here[-1]))
    batch = next(iter(shown[0]["latency"].values()))["batch_size"]
    columns = (
        *text_columns("runtime", "network"),
        Column("latency", "ms", meaning="median of one call"),
        Column(ratio, meaning=meaning),
    )
    title = f"latency at batch {batch}{shared}"
    return Table(title, columns, tuple(rows), (f"{ratio}: {meaning}",))


def _place(latency: Mapping[str, Any]) -> str:
    if latency["device"] != "cpu":
        return f", {latency['device']}"
    return f", {_threads(latency['threads'])}"


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count != 1 else ''}"


def quotient(found: Mapping[str, float]) -> Quantity:
    """Return a ratio with its 95 % interval, of what `Ratio.to_dict` gives."""
    return Quantity(found["median"], "×", found["low"], found["high"])


def runtime_name(runtime: str) -> str:
    """Return a runtime's name in words."""
    return _RUNTIMES.get(runtime, runtime)


def runtime_notes(
    runtimes: Sequence[Mapping[str, Any]], names: Mapping[str, str] = _NETWORKS
) -> list[str]:
    """Return why networks were not measured in a runtime; each reason once."""
    notes: list[str] = []
    for found in runtimes:
        reasons: dict[str, list[str]] = {}
        for name, reason in found["missing"].items():
            reasons.setdefault(reason, []).append(names.get(name, name))
        for reason, which in reasons.items():
            who = "" if len(which) == len(names) else f" of {', '.join(which)}"
            notes.append(f"no latency{who} in {runtime_name(found['runtime'])}: {reason}")
    return notes


def benchmark_table(found: Benchmark) -> Table:
    """Return latency, throughput, work, parameters and depth; ratios where there is a baseline."""
    base, latency = found.baseline, found.latency
    every = [found] if base is None else [found, base]
    heads = ["network", "baseline", "baseline / network"] if base is not None else ["network"]
    quotients: list[list[Cell]] = [[]] * 5
    if base is not None and found.speedup is not None:
        ratios = (found.macs_ratio, found.params_ratio)
        work, params = (None if value is None else Quantity(value, "×") for value in ratios)
        quotients = [[quotient(found.speedup.to_dict())], [""], [work], [params], [""]]
    rows: list[list[Cell]] = [
        ["latency", *(str(one.latency) for one in every)],
        ["samples per second", *(_four_digits(one.latency.images_per_second) for one in every)],
        ["work, MACs per sample", *(Quantity(one.macs, "count") for one in every)],
        ["parameters", *(Quantity(one.params, "count") for one in every)],
        ["depth, layers", *("unknown" if one.depth is None else one.depth for one in every)],
    ]
    notes = [
        f"batch {found.batch_size} on {latency.device}, {_threads(latency.threads)}; median "
        f"(quartiles) of {latency.samples} rounds"
    ]
    if base is not None:
        notes.append("baseline / network: above 1 is faster or smaller; of latency the median over "
                     "pairs of rounds, with its 95 % interval")  # fmt: skip
    if found.uncounted:
        notes.append(f"work without {', '.join(found.uncounted)}")
    cells = (Row((*row, *ratio)) for row, ratio in zip(rows, quotients, strict=True))
    return Table("", (*text_columns(""), *map(Column, heads)), tuple(cells), tuple(notes))


def _four_digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
