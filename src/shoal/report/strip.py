"""A network drawn as a strip of layers, before and after, as SVG: what became of each."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from html import escape

from shoal.display import counted
from shoal.report.table import amount
from shoal.search.layers import Layer
from shoal.search.records import RunRecord

FATES = ("kept", "merged", "collapsed", "linearized", "dropped")
_WIDE, _NARROW, _GAP = 10.0, 4.0, 1.5  # of a layer with weights, of a rectifier, between
_HEIGHT = 40.0


def strip(record: RunRecord) -> tuple[str, str]:
    """Return the strips of dense and result, one below the other; empty where nothing is known."""
    if not record.layers:
        return "", ""
    places, width = _places(record.layers)
    spans = _spans(record.layers, record.merged_layers, places)
    return (
        _drawn(record.layers, places, width, "layers of the dense network"),
        _drawn(record.merged_layers, spans, width, "layers of the result, merged"),
    )


def _drawn(
    layers: Sequence[Layer], at: Mapping[str, tuple[float, float]], width: float, what: str
) -> str:
    boxes = "".join(_box(layer, *at[layer.path]) for layer in layers)
    least = min(width, 640)  # pixels, of a narrow window that scrolls
    return (
        f'<svg class="strip" viewBox="0 0 {width:.0f} {_HEIGHT:.0f}" preserveAspectRatio="none" '
        f'role="img" aria-label="{what}" style="min-width: {least:.0f}px">{boxes}</svg>'
    )


def legend(record: RunRecord) -> list[tuple[str, str]]:
    """Return what the colours of the strip mean: a fate, and how many layers had it."""
    counts = {fate: [layer for layer in record.layers if layer.fate == fate] for fate in FATES}
    return [(fate, f"{fate}: {_count(layers)}") for fate, layers in counts.items() if layers]


def _count(layers: Sequence[Layer]) -> str:
    weighted = sum(layer.macs > 0 for layer in layers)
    words = ((weighted, "layer"), (len(layers) - weighted, "rectifier"))
    return ", ".join(counted(n, word) for n, word in words if n)


def _places(layers: Sequence[Layer]) -> tuple[dict[str, tuple[float, float]], float]:
    """Return left edge and width of each layer, and the width of all."""
    found, left = {}, 0.0
    for layer in layers:
        width = _WIDE if layer.macs else _NARROW
        found[layer.path] = left, width
        left += width + _GAP
    return found, max(left, 160.0)


def _spans(
    layers: Sequence[Layer],
    merged: Sequence[Layer],
    places: Mapping[str, tuple[float, float]],
) -> dict[str, tuple[float, float]]:
    """Return left edge and width of the result's layers: below those whose place they take."""
    order = [layer.path for layer in layers]
    known = [(i, layer.path) for i, layer in enumerate(merged) if layer.path in places]
    found = {path: places[path] for _, path in known}
    stops = [(-1, -1), *((i, order.index(path)) for i, path in known), (len(merged), len(order))]
    for (i, a), (j, b) in itertools.pairwise(stops):
        new = merged[i + 1 : j]
        free = [places[path] for path in order[a + 1 : b]] if b > a else []
        if not new:
            continue
        left = free[0][0] if free else sum(places[order[a]]) + _GAP if a >= 0 else 0.0
        right = sum(free[-1]) if free else left + _NARROW * len(new)
        width = (right - left - _GAP * (len(new) - 1)) / len(new)
        for k, layer in enumerate(new):
            found[layer.path] = left + k * (width + _GAP), width
    return found


def _box(layer: Layer, left: float, width: float) -> str:
    work = f", {amount(layer.macs)} MACs" if layer.macs else ""
    words = f"{layer.path}: {layer.what}{work}; {layer.fate}"
    height = _HEIGHT if layer.macs else _HEIGHT / 2
    return (
        f'<rect class="{layer.fate}" x="{left:.1f}" y="{(_HEIGHT - height) / 2:.1f}" '
        f'width="{width:.1f}" height="{height:.1f}"><title>{escape(words)}</title></rect>'
    )
