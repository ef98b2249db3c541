"""A run in one sentence, for the head of its page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from shoal.data import data_sets
from shoal.report.latency_tables import runtime_name
from shoal.report.table import UNITS, quality_title, quality_unit
from shoal.search.figures import TOP1
from shoal.search.records import RunRecord


def sentence(record: RunRecord, config: Mapping[str, Any]) -> str:
    """Return what a run came to; `config` is that of its folder, for the names of model and data.

    The quality is that on test data where there are some, else on validation data.
    """
    model, data = _model(config), _data(config)
    of = f"{model} on {data}" if data else model
    quality = _quality(record)
    end = record.latency
    if end is None:
        done = f"{record.removed} {record.unit} removed so far"
        return f"{of}: {done}, {quality}."
    return f"{of}: {_speed(record)}, {quality}{_machine(record)}."


def _model(config: Mapping[str, Any]) -> str:
    name = str(config.get("model") or "The network")
    return name.partition("?")[0].rpartition(":")[2]


def _data(config: Mapping[str, Any]) -> str:
    kind, _, root = str(config.get("data") or "").partition(":")
    if kind in data_sets and kind != "folder":
        return kind
    return PurePath(root.partition("?")[0]).name if root else PurePath(kind).name


def _speed(record: RunRecord) -> str:
    end = record.latency
    assert end is not None
    place = f"in {runtime_name(end.runtime)} at batch {end.batch}"
    gain = end.speedup
    if not gain.get("trusted", True):
        return f"how fast it is {place} could not be told, since the machine was busy"
    if gain["low"] <= 1.0 <= gain["high"]:
        return f"no certain change of speed {place}"
    return f"{gain['median']:.2f} × as fast {place}"


def _quality(record: RunRecord) -> str:
    dense, final = record.dense, record.final
    part = "validation" if dense.top1_test is None or final.top1_test is None else "test"
    key = "top1_val" if part == "validation" else "top1_test"
    before, after = getattr(dense, key), getattr(final, key)
    change = after - before
    unit = UNITS[quality_unit(dense)]
    what = (
        quality_title(part, dense.quality_name)
        if dense.quality_name != TOP1
        else f"{part} accuracy"
    )
    if abs(change) < 0.005:
        return f"the same {what} ({unit(after)})"
    word = "more" if change > 0 else "less"
    return f"{abs(change):.2f} points {word} {what} ({unit(before)} → {unit(after)})"


def _machine(record: RunRecord) -> str:
    where = record.machine.get("gpu") or record.machine.get("processor")
    date = record.machine.get("date")
    return f"; measured on {where}, {date}" if where else ""
