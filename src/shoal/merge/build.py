"""Put the chosen segments into a network's graph, and write down what became of each layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx, nn

from shoal.merge.algebra import ConvMap
from shoal.merge.boundaries import boundary
from shoal.merge.cut import Prices, Segment, best_cut
from shoal.merge.linear_ops import linear_map, operands, tensor_shape
from shoal.merge.regions import Region
from shoal.merge.report import Boundary, Kept, Merged
from shoal.network import Network
from shoal.network.rewrite import between, free_path, is_closed, replace_stretch_
from shoal.network.weights import is_weighted
from shoal.surgery.layer_spec import layer_spec

__all__ = ["FOLD_ONLY", "Applier", "Attempt"]

FOLD_ONLY = "only scales and shifts were to be folded"


@dataclass
class Attempt:
    """A merged copy of a network, and what was done to it."""

    network: Network
    merged: list[Merged] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)
    boundaries: list[Boundary] = field(default_factory=list)
    rounds: list[list[dict[str, Any]]] = field(default_factory=list)  # the cuts of each
    reshaped: bool = False  # whether lines were given the rank of what they read
    pool_first: bool = False  # whether 1×1 convolutions before a mean were put after it
    joined: bool = False  # whether more than scales and shifts was folded
    error: float = math.inf
    error_float64: float | None = None


class Applier:
    """Applies the best cut of one region after the other.

    Args:
        attempt: whose network is changed, and where it is written down.
        prices: by what a cut is chosen.
        timed: whether a segment's cost is in milliseconds.
    """

    def __init__(self, attempt: Attempt, prices: Prices, *, timed: bool) -> None:
        self.network = attempt.network
        self.attempt = attempt
        self.prices = prices
        self.timed = timed
        self.region = ""
        attempt.rounds.append([])
        self.now: dict[fx.Node, fx.Node] = {}  # who gives a tensor that was replaced

    def apply(self, region: Region, *, leave: bool = False) -> None:
        """Cut a region into its layers; `leave` only writes down where it begins and ends."""
        self.region = region.end.name
        others = [b for b in self.attempt.boundaries if b.region != self.region]
        self.attempt.boundaries = [*others, boundary(region, self.network)]
        if not leave:
            self._apply(best_cut(region.chain, self.prices))

    def _apply(self, segments: Sequence[Segment]) -> None:
        """Apply the segments of a region or of a branch."""
        for i, segment in enumerate(segments):
            following = segments[i + 1] if i + 1 < len(segments) else None
            kept = Kept(self._names(segment), self._why(segment, following), self.region)
            if segment.map is None and segment.branches:
                for branch in segment.branches:
                    self._apply(branch)
                self._bypass_pushed(segment)
            elif segment.changed:
                self._replace(segment)
            if kept.reason and (segment.layers or _scales(segment)):
                self.attempt.kept.append(kept)

    def _why(self, segment: Segment, following: Segment | None) -> str:
        """Return why a segment is not one layer with the following one."""
        if segment.map is None and segment.branches:
            return segment.reason if self.prices.joins else segment.reason or FOLD_ONLY
        if following is None:
            return segment.reason
        if segment.map is None or (following.map is None and not following.branches):
            return "what comes after it is flattened first"
        if not self.prices.joins and _scales(segment):
            return segment.reason or "folding it would cost the next layer a channel of ones"
        if not self.prices.joins and segment.layers and following.layers:
            return segment.reason or FOLD_ONLY
        return segment.reason

    def _names(self, segment: Segment) -> tuple[str, ...]:
        """Return the paths of a segment's layers with weights, or of what it has instead."""
        inside = between(self.now.get(segment.start, segment.start), segment.end)
        nodes = [node for node in self.network.graph.nodes if node in inside]
        called = [node for node in nodes if node.op == "call_module"]
        weighted = [node for node in nodes if is_weighted(node, self.network)]
        return tuple(str(n.target) for n in weighted or called) or (segment.end.name,)

    def _replace(self, segment: Segment) -> None:
        start = self.now.get(segment.start, segment.start)
        end = self.now.get(segment.end, segment.end)
        if not is_closed(start, end):
            reason = "a tensor inside is needed elsewhere"
            self.attempt.kept.append(Kept(self._names(segment), reason, self.region))
            return
        merged = self._describe(segment, start, end)
        flatten = _flattening(start, end, segment.map)
        layers = self._layers(segment, merged.name, flatten, start, end)
        specs = [[path, layer_spec(module)] for path, module in layers]
        self._record_cut(start, end, specs, flatten)
        self.attempt.merged.append(merged)
        self.attempt.joined |= segment.layers > 1
        if not layers and not flatten:
            end.replace_all_uses_with(start)
            self.now[segment.end] = start
        else:
            node = replace_stretch_(self.network, start, end, layers, flatten=flatten)
            self.now[segment.end] = node

    def _record_cut(
        self, start: fx.Node, end: fx.Node, specs: list[list[Any]], flatten: str | None
    ) -> None:
        """Write a cut down; by places in the graph, for a node's name depends on its history."""
        place = {node: index for index, node in enumerate(self.network.graph.nodes)}
        cut = {"start": place[start], "end": place[end], "layers": specs, "flatten": flatten}
        self.attempt.rounds[-1].append(cut)

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
        self.attempt.merged.append(self._describe(gone, total, segment.end))
        self._record_cut(total, segment.end, [], None)
        segment.end.replace_all_uses_with(total)
        self.now[segment.end] = total

    def _layers(
        self, segment: Segment, path: str, flatten: str | None, start: fx.Node, end: fx.Node
    ) -> list[tuple[str, nn.Module]]:
        """Return the new layers with their paths; none where the segment does nothing."""
        found = segment.map
        if found is None or found.is_identity:
            return []
        if flatten == "before" and found.covers(tensor_shape(start)[2:]):
            found = found.flat()
        elif found.spatial and (flatten == "before" or len(tensor_shape(start)) == 2):
            found = _without_positions(found)
        *helpers, layer = found.layers(self._like(start, end))
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
            latency_before_ms=segment.cost_apart if self.timed else None,
            latency_after_ms=segment.cost if self.timed else None,
            region=self.region,
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


def _scales(segment: Segment) -> bool:
    """Whether a segment scales and shifts, rather than only hand on or move what it reads."""
    return segment.map is not None and segment.map.is_affine and not segment.map.is_identity


def _flattening(start: fx.Node, end: fx.Node, found: ConvMap | None) -> str | None:
    """Return where a flattening inside a segment goes: before layers that see all, or one position.

    A convolution over the whole image computes the same as a linear layer, and much slower.
    """
    shape = tensor_shape(start)
    if len(shape) == 2 or len(tensor_shape(end)) != 2:
        return None
    if all(n == 1 for n in shape[2:]):
        single = found is None or found.channels_out == tensor_shape(end)[1]
        return "before" if single else "after"
    return "before" if found is not None and found.covers(shape[2:]) else "after"


def _without_positions(found: ConvMap) -> ConvMap:
    """Return a convolution from one position to one as a linear layer.

    Of its taps one reads the position, the others padding; a channel of ones is a bias there.
    """
    axes = list(zip(found.padding, found.dilation, found.kernel, strict=True))
    weight = torch.zeros_like(found.weight.flatten(2)[:, :, 0])
    if all(p % d == 0 and p // d < k for p, d, k in axes):
        weight = found.weight.permute(*range(2, found.weight.dim()), 0, 1)
        for p, d, _ in axes:
            weight = weight[p // d]
    bias = found.bias
    if found.ones:
        weight, bias = weight[:, :-1], bias + weight[:, -1]
    return ConvMap(weight, bias, (), (), (), found.groups)


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
