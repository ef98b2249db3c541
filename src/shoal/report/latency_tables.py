"""The latency of dense and result in each runtime, in tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shoal.report.table import Column, Quantity, Row, Table

__all__ = ["latency_table", "quotient", "runtime_name", "runtime_notes"]

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

    Args:
        runtimes: what `SideBySide.to_dict` gives, of one batch size.
        names: how the networks are called in the table, in its order.
    """
    shown = [found for found in runtimes if found["latency"]]
    if not shown:
        return None
    some = next(iter(shown[0]["latency"].values()))
    known = names is _NETWORKS
    baseline = "dense with its batch norms folded" if known else names[shown[0]["baseline"]]
    ratio = f"{'dense' if known else 'baseline'} / this"
    meaning = f"latency of {baseline} over this one's, with its 95 % interval"
    columns = (
        Column("runtime", align="left"),
        Column("network", align="left"),
        Column("latency", "ms", meaning="median of one call"),
        Column(ratio, meaning=meaning),
    )
    rows = [
        row
        for found in shown
        for row in _rows(
            found,
            {n: words for n, words in names.items() if n in found["latency"]},
            "" if _shared(shown) else _place(found),
        )
    ]
    title = f"latency at batch {some['batch_size']}{_shared(shown)}"
    return Table(title, columns, tuple(rows), (f"{ratio}: {meaning}",))


def _shared(shown: Sequence[Mapping[str, Any]]) -> str:
    """Return where all of them were measured; nothing where they differ."""
    places = {_place(found) for found in shown}
    return places.pop() if len(places) == 1 else ""


def _rows(found: Mapping[str, Any], names: Mapping[str, str], place: str) -> list[Row]:
    rows: list[Row] = []
    for name, words in names.items():
        runtime = "" if rows else f"{runtime_name(found['runtime'])}{place}"
        ratio = "1" if name == found["baseline"] else quotient(found["ratio"][name])
        cells = (runtime, words, found["latency"][name]["median_ms"], ratio)
        rows.append(Row(cells, last=len(rows) == len(names) - 1))
    return rows


def _place(found: Mapping[str, Any]) -> str:
    some = next(iter(found["latency"].values()))
    if some["device"] != "cpu":
        return f", {some['device']}"
    threads = some["threads"]
    return f", {threads} thread{'s' if threads != 1 else ''}"


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
        runtime = runtime_name(found["runtime"])
        reasons: dict[str, list[str]] = {}
        for name, reason in found["missing"].items():
            reasons.setdefault(reason, []).append(names.get(name, name))
        for reason, which in reasons.items():
            everything = len(which) == len(names)
            who = "" if everything else f" of {', '.join(which)}"
            notes.append(f"no latency{who} in {runtime}: {reason}")
    return notes
