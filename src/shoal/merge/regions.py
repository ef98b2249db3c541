"""Regions: the maximal linear subgraphs with one input tensor and one output tensor.

Nodes that are linear in one and the same tensor form a group. Each tensor of the group that is
needed outside it ends a region, which begins at the nearest tensor before it that is needed
elsewhere too. Between the two lies a chain of elements: single layers, and sums of two branches
that are chains themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import fx

from shoal.merge.conv_map import ConvMap
from shoal.merge.linear_ops import Linear, linear_map, operands
from shoal.network import Network
from shoal.network.flow import Flow
from shoal.network.weights import is_weighted

__all__ = ["Element", "Layer", "Region", "Sum", "find_regions"]


@dataclass(frozen=True)
class Layer:
    """One linear node of a chain.

    Attributes:
        node: the node.
        source: the tensor it reads.
        make: gives its map; None for a flattening.
        weighted: whether it is a layer with weights.
    """

    node: fx.Node
    source: fx.Node
    make: Callable[[], ConvMap] | None
    weighted: bool


@dataclass(frozen=True)
class Sum:
    """Two chains from the same tensor, added (sign 1) or subtracted (sign −1) by `node`.

    `layout` is "conv" or "last" where it is known which dimension holds the channels.
    """

    node: fx.Node
    source: fx.Node
    first: tuple[Element, ...]
    second: tuple[Element, ...]
    sign: float
    layout: str | None = None


Element = Layer | Sum


@dataclass(frozen=True)
class Region:
    """A linear subgraph from the tensor `start` (excluded) to the tensor `end` (included).

    Attributes:
        start: the input tensor's node.
        end: the output tensor's node.
        chain: what lies between, in order.
        root: the tensor that all of it, and what comes before, is linear in.
        leaving: the nodes that read `end` and are not linear in `root`.
    """

    start: fx.Node
    end: fx.Node
    chain: tuple[Element, ...]
    root: fx.Node
    leaving: tuple[fx.Node, ...]


def find_regions(network: Network) -> list[Region]:
    """Return the regions of a network, seen in eval mode, in the order of the forward pass."""
    return list(_Finder(network).regions())


class _Finder:
    def __init__(self, network: Network) -> None:
        self.network = network
        self.flow = Flow(network.graph)
        self.linear: dict[fx.Node, Linear] = {}
        self.root: dict[fx.Node, fx.Node] = {}
        self.layout: dict[fx.Node, str | None] = {}
        for node in network.graph.nodes:
            self._place(node)
        self.end_of = self._ends()

    def _place(self, node: fx.Node) -> None:
        """Put a node into the group of the tensor it is linear in, if there is one."""
        found = linear_map(node, self.network)
        if found is not None and self.flow.carries(found.source):
            self.linear[node] = found
            before = self.layout.get(found.source)
            fits = found.layout is None or before in (None, found.layout)
            if before == "flat":
                fits = found.layout in (None, "last") and found.make is not None
            self.root[node] = self.root.get(found.source, found.source) if fits else found.source
            self.layout[node] = self._layout_after(found, before if fits else None)
            return
        pair = operands(node)
        if pair is None:
            return
        a, b, _ = pair
        roots = self.root.get(a, a), self.root.get(b, b)
        layouts = {self.layout.get(a), self.layout.get(b)} - {None}
        if roots[0] is roots[1] and len(layouts) <= 1 and self.flow.carries(a):
            self.root[node] = roots[0]
            self.layout[node] = layouts.pop() if layouts else None

    @staticmethod
    def _layout_after(found: Linear, before: str | None) -> str | None:
        if found.make is None:
            return "flat"
        return before if before == "flat" else found.layout or before

    def _ends(self) -> dict[fx.Node, fx.Node]:
        """Return for each node of a group the region's end that it leads to.

        A node that is needed outside the group, or that leads to several ends, is an end itself.
        """
        end_of: dict[fx.Node, fx.Node] = {}
        for node in reversed(list(self.network.graph.nodes)):
            if node not in self.root:
                continue
            ends: set[fx.Node] = set()
            for user in node.users:
                inside = self.root.get(user) is self.root[node] and user in end_of
                ends.add(end_of[user] if inside else node)
            end_of[node] = ends.pop() if len(ends) == 1 else node
        return end_of

    def regions(self) -> Iterator[Region]:
        """Give the region of every end."""
        for end in self.network.graph.nodes:
            if end not in self.end_of or self.end_of[end] is not end:
                continue
            start = self._start(end)
            chain = tuple(self._chain(start, end))
            if chain:
                root = self.root[end]
                leaving = tuple(u for u in end.users if self.root.get(u) is not root)
                yield Region(start, end, chain, root, leaving)

    def _start(self, end: fx.Node) -> fx.Node:
        node = end
        while True:
            before = self.flow.dominator[node]
            assert before is not None
            if before is self.root[end] or self.end_of[before] is before:
                return before
            node = before

    def _chain(self, start: fx.Node, end: fx.Node) -> list[Element]:
        elements: list[Element] = []
        node = end
        while node is not start:
            before = self.flow.dominator[node]
            assert before is not None
            if node in self.linear:
                found = self.linear[node]
                weighted = is_weighted(node, self.network)
                elements.append(Layer(node, before, found.make, weighted))
            else:
                pair = operands(node)
                assert pair is not None
                a, b, sign = pair
                first, second = self._chain(before, a), self._chain(before, b)
                layout = self.layout.get(node)
                elements.append(Sum(node, before, tuple(first), tuple(second), sign, layout))
            node = before
        return elements[::-1]
