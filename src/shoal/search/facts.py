"""What goes with the networks of a search when they are saved: `Network.meta`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from shoal.data.facts import facts_of
from shoal.network import Network
from shoal.network.about import sample_shape
from shoal.search.records import RunRecord
from shoal.tasks import Task

MEASURED = ("figures", "machine")
"""The keys of what was measured at the end of a search."""


def describe_(
    network: Network, train: Iterable[Any], task: Task, task_name: str, about: Mapping[str, Any]
) -> None:
    """Let a network say what it is for: labels, normalisation, the shape of a sample, the task.

    What `about` says comes before what the training data know, and that before what the network
    said itself; figures of an earlier search are not its own.
    """
    known = {name: list(values) for name, values in facts_of(train).items()}
    meta = {name: value for name, value in network.meta.items() if name not in MEASURED}
    network.meta.clear()
    network.meta |= meta | known | dict(about)
    network.meta |= {"task": task_name, "quality": task.quality_name}
    network.meta["input_shape"] = sample_shape(network)


def figures_of(record: RunRecord) -> dict[str, Any]:
    """Return what the networks of a finished search say of themselves besides: its figures.

    Each figure is given of the dense network and of the result, merged: `{"dense": …, "this": …}`.
    """
    end, dense, final = record.latency, record.dense, record.final
    if end is None:
        return {}
    pairs: dict[str, tuple[Any, Any]] = {
        "validation": (dense.top1_val, final.top1_val),
        "depth": (dense.depth, end.merged_depth),
        "macs": (dense.macs, end.merged_macs),
        "params": (end.dense_folded_params or dense.params, end.merged_params),
    }
    if dense.relus is not None and final.relus is not None:
        pairs["relus"] = dense.relus, final.relus
    if dense.top1_test is not None and final.top1_test is not None:
        pairs["test"] = dense.top1_test, final.top1_test
    figures: dict[str, Any] = {name: _pair(*pair) for name, pair in pairs.items()}
    figures |= {"quality_unit": dense.quality_unit, "latency": _latencies(record)}
    return {"figures": figures, "machine": dict(record.machine)}


def _pair(dense: Any, this: Any) -> dict[str, Any]:
    return {"dense": dense, "this": this}


def _latencies(record: RunRecord) -> list[dict[str, Any]]:
    """Return median latencies in ms, and their ratio, by runtime and batch size."""
    found = []
    for one in () if record.latency is None else record.latency.measured:
        ratio = one["ratio"].get("result_merged")
        if ratio is None:
            continue
        dense, this = (one["latency"][name] for name in ("dense_folded", "result_merged"))
        place = {"runtime": one["runtime"], "batch": one["batch"], "decides": one["decides"]}
        place |= {"device": this["device"], "threads": this["threads"], "unit": "ms"}
        times = _pair(dense["median_ms"], this["median_ms"])
        found.append({**place, **times, "ratio": dict(ratio)})
    return found
