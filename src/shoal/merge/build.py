"""Build the chosen segments into a network's graph, and write down what became of each layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import fx, nn

from shoal.merge.algebra import Inexact, then
from shoal.merge.cut import Prices, best_cut
from shoal.merge.linear_ops import linear_map, operands, positions
from shoal.merge.regions import Region, boundary, inside
from shoal.merge.report import Boundary, Kept, Merged
from shoal.merge.units import Segment, as_built, place_of_flattening
from shoal.network import Network
from shoal.network.flow import is_frozen, is_weighted
from shoal.network.rewrite import free_path, is_closed, place_of, replace_stretch_

FOLD_ONLY = "only scales and shifts were to be folded"


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

    def take(self, later: Attempt) -> None:
        """Add what another pass over the regions did."""
        self.merged += later.merged
        self.kept = later.kept
        seen = {boundary.region for boundary in later.boundaries}
        self.boundaries = [b for b in self.boundaries if b.region not in seen] + later.boundaries
        self.joined |= later.joined


class Builder:
    """Puts the best cut of one region after the other into a network, in place; dead nodes stay."""

    def __init__(self, network: Network, prices: Prices) -> None:
        self.network = network
        self.prices = prices
        self.done = Attempt(network)
        self._region = ""
        self._now: dict[fx.Node, fx.Node] = {}  # who gives a tensor that was replaced

    def build(self, region: Region, *, leave: bool = False) -> None:
        """Cut a region into its layers; `leave` only writes down where it begins and ends."""
        self._region = region.end.name
        self.done.boundaries.append(boundary(region, self.network))
        if not leave:
            self._build(best_cut(region.chain, self.prices))

    def _build(self, segments: Sequence[Segment]) -> None:
        """Build the segments of a region or of a branch."""
        for segment, following in zip(segments, [*segments[1:], None], strict=False):
            kept = self._kept(segment, _why_apart(segment, following, self.prices))
            if segment.map is None and segment.branches:
                for branch in segment.branches:
                    self._build(branch)
                self._bypass_pushed(segment)
            elif segment.changed and not self._replace(segment):
                kept = replace(kept, reason="a tensor inside is needed elsewhere")
            if kept.reason and (segment.layers or segment.scales):
                self.done.kept.append(kept)

    def _kept(self, segment: Segment, reason: str) -> Kept:
        """Name a segment's layers with weights, or what it has instead."""
        nodes = inside(self.network, self._now.get(segment.start, segment.start), segment.end)
        called = [node for node in nodes if node.op == "call_module"]
        weighted = [node for node in nodes if is_weighted(node, self.network)]
        names = tuple(str(node.target) for node in weighted or called) or (segment.end.name,)
        return Kept(names, reason, self._region)

    def _replace(self, segment: Segment) -> bool:
        """Put a segment's layer in its place; returns whether that could be done."""
        start, end = (self._now.get(node, node) for node in (segment.start, segment.end))
        if not is_closed(start, end):
            return False
        merged = self._describe(segment, start, end)
        flatten = place_of_flattening(start, end, segment.map)
        layers: list[tuple[str, nn.Module]] = []
        if segment.map is not None and not segment.map.is_identity:
            made = as_built(segment.map, start, flatten).layers(self._like(start, end))
            if is_frozen(self._parameters(start, end)):
                made = [layer.requires_grad_(False) for layer in made]  # frozen layers stay so
            paths = [free_path(self.network, f"{merged.name}_ones"), merged.name]
            layers = list(zip(paths[-len(made) :], made, strict=True))
        self.done.merged.append(merged)
        self.done.joined |= segment.layers > 1
        if not layers and not flatten:
            end.replace_all_uses_with(start)
            self._now[segment.end] = start
        else:
            node = replace_stretch_(self.network, start, end, layers, flatten=flatten)
            self._now[segment.end] = node
        return True

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
        self.done.merged.append(self._describe(gone, total, segment.end))
        segment.end.replace_all_uses_with(total)
        self._now[segment.end] = total

    def _like(self, start: fx.Node, end: fx.Node) -> torch.Tensor:
        """Return a tensor of the type and place that the layers between two tensors have."""
        own = (*self._parameters(start, end), *self.network.parameters())
        return next(iter(own), torch.empty(0)).detach()

    def _parameters(self, start: fx.Node, end: fx.Node) -> list[nn.Parameter]:
        """Return those of the layers between two tensors, of the layers with weights first.

        These can take no other type than they have; a norm may.
        """
        called = [n for n in inside(self.network, start, end) if n.op == "call_module"]
        called.sort(key=lambda node: not is_weighted(node, self.network))
        return [p for n in called for p in self.network.get_submodule(str(n.target)).parameters()]

    def _describe(self, segment: Segment, start: fx.Node, end: fx.Node) -> Merged:
        nodes = inside(self.network, start, end)
        weighted = [node for node in nodes if is_weighted(node, self.network)]
        found = None if segment.map is None or segment.map.is_identity else segment.map
        return Merged(
            name=self._path(nodes, weighted, end, scales=found is None or found.is_affine),
            layers=tuple(str(node.target) for node in nodes if node.op == "call_module"),
            before=" + ".join(self._words(node) for node in nodes),
            after="nothing" if found is None else found.describe(),
            weighted_before=len(weighted),
            macs_before=sum(self._macs(node) for node in weighted),
            macs_after=0 if found is None or found.is_affine else _macs(found.weight, end),
            latency_before_ms=segment.cost_apart if self.prices.in_ms else None,
            latency_after_ms=segment.cost if self.prices.in_ms else None,
            region=self._region,
        )

    def _path(
        self, nodes: list[fx.Node], weighted: list[fx.Node], end: fx.Node, *, scales: bool
    ) -> str:
        """Return the path for the new layer: the last weighted layer's, if nobody else calls it."""
        called = [node for node in weighted or nodes if node.op == "call_module"]
        sites = {site.name for site in self.network.sites}
        for node in reversed(called):
            if not scales and str(node.target) in sites:
                continue  # what is no line there would be taken for a rectifier
            if all(n in nodes for n in self._calls(str(node.target))):
                return str(node.target)
        base = str(called[-1].target) if called else f"{end.meta.get('path', '')}.merged"
        return free_path(self.network, base.lstrip("."))

    def _calls(self, path: str) -> list[fx.Node]:
        """Return the calls of the module at a path, or at another path to the same place."""
        place = place_of(self.network, path)
        called = (node for node in self.network.graph.nodes if node.op == "call_module")
        return [node for node in called if place_of(self.network, str(node.target)) == place]

    def _words(self, node: fx.Node) -> str:
        if node.op != "call_module":
            return str(node.target).removeprefix("aten.").split(".")[0]
        module = self.network.get_submodule(str(node.target))
        kernel = getattr(module, "kernel_size", None)
        name = type(module).__name__
        return f"{name} {'×'.join(map(str, kernel))}" if isinstance(kernel, tuple) else name

    def _macs(self, node: fx.Node) -> int:
        if node.op != "call_module":
            return 0
        weight = self.network.get_submodule(str(node.target)).weight
        assert isinstance(weight, torch.Tensor)
        return _macs(weight, node)


def _macs(weight: torch.Tensor, node: fx.Node) -> int:
    """Return the multiply-accumulates of a layer with this weight that gives a node's value."""
    return weight.numel() * positions(node, linear=weight.dim() == 2)


def _why_apart(segment: Segment, following: Segment | None, prices: Prices) -> str:
    """Return why a segment is not one layer with the following one, or a sum not one at all."""
    if segment.map is None and segment.branches:
        return segment.reason or FOLD_ONLY
    if following is None:
        return ""
    if segment.map is None or (following.map is None and not following.branches):
        return "what comes after it is flattened first"
    if following.map is None:
        return "its neighbour is a sum of branches"
    try:
        then(segment.map, following.map)
    except Inexact as error:
        return str(error)
    if prices.joins:
        return f"merging it with the next layer would be {prices.dearer}"
    if segment.scales:
        return "folding it would cost the next layer a channel of ones"
    return FOLD_ONLY if segment.layers and following.layers else ""
