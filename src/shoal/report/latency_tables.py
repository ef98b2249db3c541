"""Latencies in tables: dense against result, networks side by side, one network by itself."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from shoal.display import counted
from shoal.measure import Benchmark
from shoal.report.table import Cell, Column, Quantity, Row, Table, text_columns
from shoal.runtimes import EAGER, title_of
from shoal.search.records import LatencyReport

_DENSE, _RESULT = "dense_folded", "result_merged"
NETWORKS = {
    "dense": "dense as given",
    _DENSE: "dense, norms folded",
    "result": "result as trained",
    _RESULT: "result merged",
    "result_folded": "result, norms folded",
    "dense_int8": "dense in int8",
    "result_int8": "result in int8",
}


def runtimes_table(found: LatencyReport) -> Table | None:
    """Return dense against result in each runtime at each batch size; None if nothing was timed."""
    shown = [one for one in found.measured if {_DENSE, _RESULT} <= set(one["latency"])]
    if not shown:
        return None
    shared, where = places_of(shown)
    grouped = len(set(where)) < len(where)  # some runtime has several rows
    rows = []
    for place, one in enumerate(shown):
        first = not place or where[place] != where[place - 1]
        last = place + 1 == len(shown) or where[place] != where[place + 1]
        times = (one["latency"][name]["median_ms"] for name in (_DENSE, _RESULT))
        cells = (
            where[place] if first else "",
            one["batch"],
            *times,
            quotient(one["ratio"][_RESULT]),
        )
        rows.append(Row(cells, "strong" if one["decides"] else "", last=last and grouped))
    meaning = (
        "latency of dense over the result's, from rounds that timed both, with its 95 % interval"
    )
    columns = (
        *text_columns("runtime"),
        Column("batch"),
        Column("dense", "ms", "right", "median of one call, batch norms folded", 1),
        Column("result", "ms", meaning="median of one call, merged"),
        Column("dense / result", meaning=meaning),
    )
    chose = [one for one in found.measured if one["decides"]]
    chosen = dict.fromkeys(runtime_name(one["runtime"]) for one in chose)
    sizes = dict.fromkeys(str(one["batch"]) for one in chose)
    notes = (
        f"dense with its batch norms folded, the result merged; dense / result: {meaning}",
        f"the search decided by latency in {' and '.join(chosen)} at batch {' and '.join(sizes)}",
        *doubt_notes(one["ratio"][_RESULT] for one in shown),
    )
    return Table(f"latency{shared}", columns, tuple(rows), notes)


def latency_table(runtimes: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> Table | None:
    """Return the table of networks, runtime by runtime; None where nothing was measured.

    It shows what `SideBySide.to_dict` gives, of one batch size, under the names and in their order.
    """
    shown = [found for found in runtimes if found["latency"]]
    if not shown:
        return None
    meaning = f"latency of {names[shown[0]['baseline']]} over this one's, with its 95 % interval"
    shared, places = places_of(shown)
    rows = []
    for found, where in zip(shown, places, strict=True):
        here = [name for name in names if name in found["latency"]]
        for name in here:
            own = "1" if name == found["baseline"] else quotient(found["ratio"][name])
            time = found["latency"][name]["median_ms"]
            cells = (where if name == here[0] else "", names[name], time, own)
            rows.append(Row(cells, last=name == here[-1]))
    columns = (
        *text_columns("runtime", "network"),
        Column("latency", "ms", meaning="median of one call"),
        Column("baseline / this", meaning=meaning),
    )
    title = f"latency at batch {shown[0]['batch']}{shared}"
    doubts = doubt_notes(ratio for found in shown for ratio in found["ratio"].values())
    return Table(title, columns, tuple(rows), (f"baseline / this: {meaning}", *doubts))


def places_of(shown: Sequence[Mapping[str, Any]]) -> tuple[str, list[str]]:
    """Return the device or the threads that all ran on, if they did, and each runtime in words."""
    places = [_place(next(iter(found["latency"].values()))) for found in shown]
    shared = places[0] if len(set(places)) == 1 else ""
    names = (runtime_name(found["runtime"]) for found in shown)
    return shared, [f"{n}{'' if shared else p}" for n, p in zip(names, places, strict=True)]


def _place(latency: Mapping[str, Any]) -> str:
    if latency["device"] != "cpu":
        return f", {latency['device']}"
    return f", {counted(latency['threads'], 'thread')}"


def quotient(found: Mapping[str, Any]) -> Quantity:
    """Return a ratio with its 95 % interval, of what `Ratio.to_dict` gives."""
    trusted = found.get("trusted", True)  # older records have no such mark
    return Quantity(found["median"], "×", found["low"], found["high"], trusted=trusted)


def doubt_notes(found: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return why ratios or latencies, as `to_dict` gives them, are not to be trusted; each once.

    Of reasons that differ in their figures alone, the first is given.
    """
    doubts = {re.sub(r"\d+", "", doubt): doubt for one in reversed(list(found))
              if (doubt := one.get("doubt", ""))}  # fmt: skip
    return tuple(f"not to be trusted: {doubt}" for doubt in reversed(doubts.values()))


def runtime_name(runtime: str) -> str:
    """Return a runtime's name in words."""
    return title_of(runtime)


def runtime_notes(
    runtimes: Sequence[Mapping[str, Any]], names: Mapping[str, str] = NETWORKS
) -> list[str]:
    """Return why networks were not measured in a runtime; each reason once."""
    sizes: dict[tuple[str, str, str], list[int]] = {}  # batch sizes by runtime, networks, reason
    every: dict[str, set[int]] = {}  # all batch sizes by runtime
    for found in runtimes:
        every.setdefault(found["runtime"], set()).add(found["batch"])
        reasons: dict[str, list[str]] = {}
        for name, reason in found["missing"].items():
            reasons.setdefault(reason, []).append(names.get(name, name))
        for reason, which in reasons.items():
            who = f" of {', '.join(which)}" if found["latency"] else ""
            sizes.setdefault((found["runtime"], who, reason), []).append(found["batch"])
    notes = []
    for (runtime, who, reason), batches in sizes.items():
        at = (
            "" if set(batches) == every[runtime] else f" at batch {' and '.join(map(str, batches))}"
        )
        notes.append(f"no latency{who} in {runtime_name(runtime)}{at}: {reason}")
    return notes


def benchmark_table(found: Benchmark, baseline: str = "baseline", samples: str = "") -> Table:
    """Return latency, throughput, work, parameters and depth; ratios where there is a baseline.

    `baseline` is what the baseline is called, `samples` the shape of one sample, where it is to be
    said.
    """
    base, latency = found.baseline, found.latency
    where = "" if found.runtime == EAGER else f" in {runtime_name(found.runtime)}"
    every = [found] if base is None else [base, found]
    ratio = f"{baseline} / this"
    heads = ["network"] if base is None else [baseline, "this", ratio]
    quotients: dict[str, Cell] = {}
    if base is not None and found.speedup is not None:
        sizes = {"MACs per sample": found.macs_ratio, "parameters": found.params_ratio}
        sizes["rectifier evaluations"] = _times(base.relus, found.relus)
        sizes["depth, layers"] = _times(base.depth, found.depth)
        quotients = {k: None if v is None else Quantity(v, "×") for k, v in sizes.items()}
        quotients["latency"] = quotient(found.speedup.to_dict())
    rows: dict[str, list[Cell]] = {
        "latency": [
            Quantity(one.latency.median_ms, "ms", sure=one.latency.trusted) for one in every
        ],
        "  lower quartile": [Quantity(one.latency.q1_ms, "ms") for one in every],
        "  upper quartile": [Quantity(one.latency.q3_ms, "ms") for one in every],
        "samples per second": [_four_digits(one.latency.images_per_second) for one in every],
        "MACs per sample": [Quantity(one.macs, "count") for one in every],
        "parameters": [Quantity(one.params, "count") for one in every],
        "rectifier evaluations": [
            None if one.relus is None else Quantity(one.relus, "count") for one in every
        ],
        "depth, layers": ["unknown" if one.depth is None else one.depth for one in every],
    }
    doubts = [one.latency.to_dict() for one in every]
    doubtful = "; ?: not to be trusted" * any(one.get("doubt") for one in doubts)
    notes = [
        f"batch {found.batch_size}{f' of {samples}' * bool(samples)}{where} on {latency.device}, "
        f"{counted(latency.threads, 'thread')}; median of {latency.samples} rounds{doubtful}"
    ]
    if base is not None:
        notes.append(f"{ratio}: above 1 is faster or smaller; of latency the median over pairs of "
                     "rounds, with its 95 % interval")  # fmt: skip
    speedups = [] if found.speedup is None else [found.speedup.to_dict()]
    notes += doubt_notes([*doubts, *speedups])
    if found.uncounted:
        notes.append(f"work without {', '.join(found.uncounted)}")
    last = [] if base is None else [""]
    cells = (
        Row((name, *row, *([quotients[name]] if name in quotients else last)))
        for name, row in rows.items()
    )
    return Table("", (*text_columns(""), *map(Column, heads)), tuple(cells), tuple(notes))


def _times(before: int | None, after: int | None) -> float | None:
    return before / after if before is not None and after else None


def _four_digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
