"""What a saved network says of itself, in lines: labels, normalisation, task, figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shoal.data.dataset import normalisation
from shoal.display import counted
from shoal.errors import printable
from shoal.report.latency_tables import quotient, runtime_name
from shoal.report.table import Quantity, amount, unit_of
from shoal.search.figures import TOP1

_SHOWN = 10  # names of classes in a line


def task_lines(meta: Mapping[str, Any]) -> list[str]:
    """Return what a saved network is for, where it says so and is no classifier."""
    task, quality = (meta.get(key) for key in ("task", "quality"))
    ordinary = task in (None, "classify") and quality in (None, TOP1)
    return [] if ordinary else [f"task: {task}; its quality is {quality}"]


def about_lines(meta: Mapping[str, Any]) -> list[str]:
    """Return what a saved network says of itself; nothing of one that was just captured."""
    lines = task_lines(meta)
    names = meta.get("classes")
    if names:
        more = f", … ({len(names)} classes)" if len(names) > _SHOWN else ""
        lines.append(f"classes: {', '.join(names[:_SHOWN])}{more}")
    if meta.get("mean") and meta.get("std"):
        how = normalisation(meta["mean"], meta["std"])
        lines.append(f"normalisation of pixels from 0 to 1: {how}")
    if meta.get("figures"):
        lines += figure_lines(meta["figures"], str(meta.get("quality", "quality")))
    if meta.get("machine"):
        lines.append(f"measured on {machine_words(meta['machine'])}")
    return [printable(line) for line in lines]  # anybody may have written what a folder says


_SIZES = {
    "depth": "depth", "macs": "MACs", "params": "parameters", "relus": "rectifier evaluations",
}  # fmt: skip


def figure_lines(figures: Mapping[str, Any], quality: str) -> list[str]:
    """Return what the search that made a network measured: dense → this one, merged."""
    lines = ["as its search measured them, dense → this network, merged:"]
    unit = unit_of(str(figures.get("quality_unit", "")))
    for part in ("validation", "test"):
        if part in figures:
            lines.append(f"{quality} {part}: {_pair(figures[part], unit)}")
    sizes = [
        f"{title} {_change(figures[name])}" for name, title in _SIZES.items() if name in figures
    ]
    lines.append(", ".join(sizes))
    for one in figures.get("latency", ()):
        place = f"{runtime_name(one['runtime'])} at batch {one['batch']}"
        lines.append(
            f"latency in {place}: {_pair(one, 'ms')}; dense / this {quotient(one['ratio'])}"
        )
    return list(filter(None, lines))


def machine_words(machine: Mapping[str, Any]) -> str:
    """Return where, when and with what was measured."""
    chip = machine.get("gpu") or machine.get("processor") or machine.get("device", "?")
    count = machine.get("threads")
    threads = "" if count is None or "gpu" in machine else f", {counted(count, 'thread')}"
    versions = ", ".join(
        f"{name} {machine[key]}"
        for key, name in (("torch", "PyTorch"), ("onnxruntime", "ONNX Runtime"), ("shoal", "shoal"))
        if key in machine
    )
    return f"{chip}{threads}, {versions}, {machine.get('date', 'at an unknown date')}"


def _pair(figure: Mapping[str, Any], unit: str) -> str:
    return " → ".join(str(Quantity(figure[name], unit)) for name in ("dense", "this"))


def _change(figure: Mapping[str, Any]) -> str:
    return " → ".join(amount(figure[name]) for name in ("dense", "this"))
