"""The latency of dense and result in each runtime, as tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from shoal.report.wording import milliseconds, ratio

__all__ = ["latency_table", "quotient", "runtime_name", "runtime_notes"]

_NETWORKS = {
    "dense": "dense as given",
    "dense_folded": "dense, batch norms folded",
    "result": "result as trained",
    "result_merged": "result merged",
}
_RUNTIMES = {"eager": "PyTorch", "onnxruntime": "ONNX Runtime"}


def latency_table(
    runtimes: Sequence[Mapping[str, Any]], names: Mapping[str, str] = _NETWORKS
) -> Table | None:
    """Return the table of networks against runtimes; None where nothing was measured.

    Args:
        runtimes: what `SideBySide.to_dict` gives, of one batch size.
        names: how the networks are called in the table, in its order.
    """
    shown = [found for found in runtimes if found["latency"]]
    if not shown:
        return None
    some = next(iter(shown[0]["latency"].values()))
    title = f"latency at batch {some['batch_size']}"
    table = Table(title=title, title_justify="left", title_style="bold", header_style="dim")
    table.add_column("", no_wrap=True)
    for found in shown:
        table.add_column(_place(found), justify="right", no_wrap=True)
        table.add_column(f"{_short(names[found['baseline']])} / this", justify="right")
    for name, words in names.items():
        table.add_row(words, *(cell for found in shown for cell in _cells(found, name)))
    return table


def _cells(found: Mapping[str, Any], name: str) -> tuple[str, str]:
    latency = found["latency"].get(name)
    if latency is None:
        return "–", ""
    own = "1" if name == found["baseline"] else quotient(found["ratio"][name])
    return milliseconds(latency["median_ms"]), own


def _place(found: Mapping[str, Any]) -> str:
    some = next(iter(found["latency"].values()))
    name = runtime_name(found["runtime"])
    if some["device"] != "cpu":
        return f"{name}, {some['device']}"
    threads = some["threads"]
    return f"{name}, {threads} thread{'s' if threads != 1 else ''}"


def _short(words: str) -> str:
    return "folded" if "folded" in words else words


def quotient(found: Mapping[str, float]) -> str:
    """Return a ratio with its 95 % interval; one that may be 1 is not claimed."""
    spread = f"{found['low']:.2f} to {found['high']:.2f}"
    if found["low"] <= 1.0 <= found["high"]:
        return f"not certain ({spread})"
    return f"{ratio(found['median'])} ({spread})"


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
