"""Build the chosen segments into a network's graph, and write down what became of each layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import fx, nn

from shoal.merge.conv_map import ConvMap
from shoal.merge.cut import Prices, best_cut
from shoal.merge.flattening import as_built, place_of_flattening
from shoal.merge.linear_ops import linear_map, operands, tensor_shape
from shoal.merge.reasons import NEEDED, boundary, why_apart
from shoal.merge.regions import Region
from shoal.merge.report import Boundary, Kept, Merged
from shoal.merge.units import Segment
from shoal.network import Network
from shoal.network.rewrite import between, free_path, is_closed, replace_stretch_
from shoal.network.weights import is_weighted

__all__ = ["Attempt", "Builder"]


@dataclass
class Attempt:
    """A merged copy of a network, and what was done to it."""

    network: Network
    merged: list[Merged] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)
    boundaries: list[Boundary] = field(default_factory=list)
    reshaped: bool = False  # whether lines were given the rank of what they read
    joined: bool = False  # whether more than scales and shifts was folded
    error: float = math.inf
    error_float64: float | None = None

    def take(self, builder: Builder) -> None:
        """Add what one pass over the regions did."""
        self.merged += builder.merged
        self.kept = builder.kept
        seen = {boundary.region for boundary in builder.boundaries}
        self.boundaries = [b for b in self.boundaries if b.region not in seen]
        self.boundaries += builder.boundaries
        self.joined |= builder.joined


class Builder:
    """Puts the best cut of one region after the other into a network, in one pass.

    The network is changed in place; dead nodes stay. What was done is kept as `Attempt` has it.
    """

    def __init__(self, network: Network, prices: Prices) -> None:
        self.network = network
        self.prices = prices
        self.merged: list[Merged] = []
        self.kept: list[Kept] = []
        self.boundaries: list[Boundary] = []
        self.joined = False
        self._region = ""
        self._now: dict[fx.Node, fx.Node] = {}  # who gives a tensor that was replaced

    def build(self, region: Region, *, leave: bool = False) -> None:
        """Cut a region into its layers; `leave` only writes down where it begins and ends."""
        self._region = region.end.name
        self.boundaries.append(boundary(region, self.network))
        if not leave:
            self._build(best_cut(region.chain, self.prices))

    def _build(self, segments: Sequence[Segment]) -> None:
        """Build the segments of a region or of a branch."""
        for segment, following in zip(segments, [*segments[1:], None], strict=False):
            reason = why_apart(segment, following, joins=self.prices.joins)
            kept = Kept(self._names(segment), reason, self._region)
            if segment.map is None and segment.branches:
                for branch in segment.branches:
                    self._build(branch)
                self._bypass_pushed(segment)
            elif segment.changed:
                self._replace(segment)
            if kept.reason and (segment.layers or segment.scales):
                self.kept.append(kept)

    def _names(self, segment: Segment) -> tuple[str, ...]:
        """Return the paths of a segment's layers with weights, or of what it has instead."""
        inside = between(self._now.get(segment.start, segment.start), segment.end)
        nodes = [node for node in self.network.graph.nodes if node in inside]
        called = [node for node in nodes if node.op == "call_module"]
        weighted = [node for node in nodes if is_weighted(node, self.network)]
        return tuple(str(n.target) for n in weighted or called) or (segment.end.name,)

    def _replace(self, segment: Segment) -> None:
        start = self._now.get(segment.start, segment.start)
        end = self._now.get(segment.end, segment.end)
        if not is_closed(start, end):
            self.kept.append(Kept(self._names(segment), NEEDED, self._region))
            return
        merged = self._describe(segment, start, end)
        flatten = place_of_flattening(start, end, segment.map)
        layers = self._layers(segment, merged.name, flatten, start, end)
        self.merged.append(merged)
        self.joined |= segment.layers > 1
        if not layers and not flatten:
            end.replace_all_uses_with(start)
            self._now[segment.end] = start
        else:
            node = replace_stretch_(self.network, start, end, layers, flatten=flatten)
            self._now[segment.end] = node

    def _bypass_pushed(self, segment: Segment) -> None:
        """Take out the scales and shifts after a sum that were pushed into its branches."""
        total = segment.end
        while operands(total) is None:
            found = linear_map(total, self.network)
            assert found is not None
            total = found.source
        if total is segment.end:
            return
        gone = replace(segment, start=total, branches=(), layers=0)
        self.merged.append(self._describe(gone, total, segment.end))
        segment.end.replace_all_uses_with(total)
        self._now[segment.end] = total

    def _layers(
        self, segment: Segment, path: str, flatten: str | None, start: fx.Node, end: fx.Node
    ) -> list[tuple[str, nn.Module]]:
        """Return the new layers with their paths; none where the segment does nothing."""
        found = segment.map
        if found is None or found.is_identity:
            return []
        *helpers, layer = as_built(found, start, flatten).layers(self._like(start, end))
        ones = [(free_path(self.network, f"{path}_ones"), module) for module in helpers]
        return [*ones, (path, layer)]

    def _like(self, start: fx.Node, end: fx.Node) -> torch.Tensor:
        """Return a tensor of the type and place that the layers between two tensors have."""
        called = (str(n.target) for n in between(start, end) if n.op == "call_module")
        inside = [p for path in called for p in self.network.get_submodule(path).parameters()]
        return next(iter((*inside, *self.network.parameters())), torch.empty(0)).detach()

    def _describe(self, segment: Segment, start: fx.Node, end: fx.Node) -> Merged:
        order = list(self.network.graph.nodes).index
        inside = sorted(between(start, end), key=order)
        weighted = [node for node in inside if is_weighted(node, self.network)]
        found = None if segment.map is None or segment.map.is_identity else segment.map
        return Merged(
            name=self._path(inside, weighted, end),
            layers=tuple(str(node.target) for node in inside if node.op == "call_module"),
            before=" + ".join(self._words(node) for node in inside),
            after="nothing" if found is None else found.describe(),
            weighted_before=len(weighted),
            macs_before=sum(_macs(self.network, node) for node in weighted),
            macs_after=0 if found is None else _map_macs(found, end),
            latency_before_ms=segment.cost_apart if self.prices.in_ms else None,
            latency_after_ms=segment.cost if self.prices.in_ms else None,
            region=self._region,
        )

    def _path(self, inside: list[fx.Node], weighted: list[fx.Node], end: fx.Node) -> str:
        """Return the path for the new layer: the last weighted layer's, if nobody else calls it."""
        called = [node for node in weighted or inside if node.op == "call_module"]
        for node in reversed(called):
            path = str(node.target)
            calls = [n for n in self.network.graph.nodes if n.target == path]
            if set(calls) <= set(inside):
                return path
        base = str(called[-1].target) if called else f"{end.meta.get('path', '')}.merged"
        return free_path(self.network, base.lstrip("."))

    def _words(self, node: fx.Node) -> str:
        if node.op != "call_module":
            return str(node.target).removeprefix("aten.").split(".")[0]
        module = self.network.get_submodule(str(node.target))
        kernel = getattr(module, "kernel_size", None)
        name = type(module).__name__
        return f"{name} {'×'.join(map(str, kernel))}" if isinstance(kernel, tuple) else name


def _positions(node: fx.Node, channels_last: bool) -> int:
    shape = tensor_shape(node)
    sizes = shape[1:-1] if channels_last else shape[2:]
    return math.prod(n for n in sizes if n is not None)


def _macs(network: Network, node: fx.Node) -> int:
    if node.op != "call_module":
        return 0
    weight = network.get_submodule(str(node.target)).weight
    assert isinstance(weight, torch.Tensor)
    return weight.numel() * _positions(node, channels_last=weight.dim() == 2)


def _map_macs(found: ConvMap, end: fx.Node) -> int:
    if found.is_affine:
        return 0
    return found.weight.numel() * _positions(end, channels_last=found.spatial == 0)
