"""Regions: the maximal linear subgraphs with one input tensor and one output tensor.

Nodes that are linear in one and the same tensor form a group. Each tensor of the group that is
needed outside it ends a region, which begins at the nearest tensor before it that is needed
elsewhere too. Between the two lies a chain of elements: single layers, and sums of two branches
that are chains themselves. Why a region begins and ends where it does is put into words here, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx

from shoal.merge.linear_ops import Linear, linear_map, operands
from shoal.merge.report import Boundary
from shoal.network import Network
from shoal.network.flow import Flow
from shoal.network.rewrite import between


@dataclass(frozen=True)
class Sum:
    """Two chains from the same tensor, added (sign 1) or subtracted (sign −1) by `node`."""

    node: fx.Node
    source: fx.Node
    first: tuple[Element, ...]
    second: tuple[Element, ...]
    sign: float
    layout: str | None = None  # that of `Linear`, where it is known


Element = Linear | Sum


@dataclass(frozen=True)
class Region:
    """A linear subgraph from the tensor `start` (excluded) to the tensor `end` (included)."""

    start: fx.Node
    end: fx.Node
    chain: tuple[Element, ...]  # what lies between, in order
    root: fx.Node  # the tensor that all of it, and what comes before, is linear in
    leaving: tuple[fx.Node, ...]  # the nodes that read `end` and are not linear in `root`


def inside(network: Network, start: fx.Node, end: fx.Node) -> list[fx.Node]:
    """Return the nodes from `start` (excluded) to `end` (included), in order."""
    found = between(start, end)
    return [node for node in network.graph.nodes if node in found]


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
            before, flattens = self.layout.get(found.source), found.make is None
            if before == "flat":
                fits = found.layout in (None, "last") and not flattens
            else:
                fits = found.layout is None or before in (None, found.layout)
            before = before if fits else None
            self.linear[node] = found
            self.root[node] = self.root.get(found.source, found.source) if fits else found.source
            after = before if before == "flat" else found.layout or before
            self.layout[node] = "flat" if flattens else after
        elif (pair := operands(node)) is not None:
            a, b, _ = pair
            layouts = {self.layout.get(a), self.layout.get(b)} - {None}
            one_root = self.root.get(a, a) is self.root.get(b, b)
            if one_root and len(layouts) <= 1 and self.flow.carries(a):
                self.root[node] = self.root.get(a, a)
                self.layout[node] = layouts.pop() if layouts else None

    def _ends(self) -> dict[fx.Node, fx.Node]:
        """Return for each node of a group the region's end that it leads to."""
        # A node that is needed outside the group, or that leads to several ends, is one itself.
        end_of: dict[fx.Node, fx.Node] = {}
        for node in reversed(list(self.network.graph.nodes)):
            if node not in self.root:
                continue
            ends: set[fx.Node] = set()
            for user in node.users:
                grouped = self.root.get(user) is self.root[node] and user in end_of
                ends.add(end_of[user] if grouped else node)
            end_of[node] = ends.pop() if len(ends) == 1 else node
        return end_of

    def regions(self) -> Iterator[Region]:
        """Give the region of every end."""
        for end in self.network.graph.nodes:
            if end not in self.end_of or self.end_of[end] is not end:
                continue
            start = self._start(end)
            chain = self._chain(start, end)
            if chain:
                root = self.root[end]
                leaving = tuple(u for u in end.users if self.root.get(u) is not root)
                yield Region(start, end, chain, root, leaving)

    def _before(self, node: fx.Node) -> fx.Node:
        before = self.flow.dominator[node]
        assert before is not None
        return before

    def _start(self, end: fx.Node) -> fx.Node:
        node = self._before(end)
        while node is not self.root[end] and self.end_of[node] is not node:
            node = self._before(node)
        return node

    def _chain(self, start: fx.Node, end: fx.Node) -> tuple[Element, ...]:
        elements: list[Element] = []
        node = end
        while node is not start:
            before = self._before(node)
            if node in self.linear:
                elements.append(self.linear[node])
            else:
                pair = operands(node)
                assert pair is not None
                first, second = self._chain(before, pair[0]), self._chain(before, pair[1])
                layout = self.layout.get(node)
                elements.append(Sum(node, before, first, second, pair[2], layout))
            node = before
        return tuple(elements[::-1])


# ---------------------------------------------------------------------- where they begin and end


def boundary(region: Region, network: Network) -> Boundary:
    """Return where a region of this network begins and ends, and why."""
    nodes = inside(network, region.start, region.end)
    layers = tuple(str(node.target) for node in nodes if node.op == "call_module")
    return Boundary(
        region=region.end.name,
        layers=layers or tuple(node.name for node in nodes),
        begins=_begins(region, network, nodes),
        ends=_ends(region, network, nodes),
    )


def _begins(region: Region, network: Network, nodes: list[fx.Node]) -> str:
    # A layer that mixes another dimension, and an addition of two tensors of different origin, are
    # linear themselves, and yet a region cannot reach across them.
    start = region.start
    if start.op == "placeholder":
        return "it is the network's input"
    if all(user in nodes for user in start.users):
        if operands(start) is not None:
            return f"{_name(start)} adds two tensors that do not come from one linearly"
        if linear_map(start, network) is not None:
            return f"{_name(start)} has its channels in another dimension"
    if start is region.root:
        return f"{_name(start)} is not linear"
    return f"the output of {_name(start)} is needed elsewhere too"


def _ends(region: Region, network: Network, nodes: list[fx.Node]) -> str:
    users, leaving = list(region.end.users), region.leaving
    if len(users) == 1 and users[0] not in nodes and users[0].op != "output":
        user = users[0]
        if operands(user) is not None:
            joined = "adds a tensor to it that does not come linearly from where it begins"
            return f"{_name(user)} {joined}"
        found = linear_map(user, network)
        if found is not None and found.source is region.end:
            return f"{_name(user)} has its channels in another dimension"
    if not leaving:
        return "the network ends"
    name = _name(leaving[0])
    if len(users) > 1:
        return f"its output is needed {len(users)} times, by {name} among others"
    if leaving[0].op == "output":
        return "it is the network's output"
    return f"{name} is not linear in it"


def _name(node: fx.Node) -> str:
    path = node.meta.get("path")
    if node.op == "call_module" or not path:
        return f"'{node.target if node.op == 'call_module' else node.name}'"
    return f"{node.name} in '{path}'"
