"""How the input's data flow through a graph: which nodes carry them, and what dominates what."""

from __future__ import annotations

from collections.abc import Callable, Collection

from torch import fx

from shoal.network.ops import op_of

__all__ = ["Flow", "reads_shape", "upstream"]


def reads_shape(node: fx.Node) -> bool:
    """Whether a call reads its operand's shape or place only."""
    return node.op == "call_function" and op_of(node.target).shape_only


def upstream(end: fx.Node, passes: Callable[[fx.Node], bool]) -> dict[fx.Node, None]:
    """Return `end` and what it is computed from, up to what does not pass."""
    found: dict[fx.Node, None] = {}
    waiting = [end]
    while waiting:
        node = waiting.pop()
        if node not in found and passes(node):
            found[node] = None
            waiting.extend(node.all_input_nodes)
    return found


class Flow:
    """The part of a graph that carries the input's data, with immediate dominators.

    Node d dominates node n if all data reach n through d. The immediate dominator of an addition
    is the tensor where its two operands part.

    Args:
        graph: a captured graph, whose nodes have their shapes in `meta`.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self.order = {node: i for i, node in enumerate(graph.nodes)}
        self.dominator: dict[fx.Node, fx.Node | None] = {}
        self._carries: set[fx.Node] = set()
        self._depth: dict[fx.Node | None, int] = {None: 0}
        for node in graph.nodes:
            sources = [n for n in node.all_input_nodes if n in self._carries]
            if node.op == "placeholder" and "shape" in node.meta:
                self._enter(node, None)
            elif sources and not reads_shape(node):
                common: fx.Node | None = sources[0]
                for source in sources[1:]:
                    common = self._meet(common, source)
                self._enter(node, common)

    def _enter(self, node: fx.Node, dominator: fx.Node | None) -> None:
        self._carries.add(node)
        self.dominator[node] = dominator
        self._depth[node] = self._depth[dominator] + 1

    def _meet(self, a: fx.Node | None, b: fx.Node | None) -> fx.Node | None:
        while a is not b:
            if self._depth[a] >= self._depth[b]:
                a = self.dominator[a] if a is not None else None
            else:
                b = self.dominator[b] if b is not None else None
        return a

    def carries(self, node: fx.Node) -> bool:
        """Whether the node's value depends on the input's data, not only on its shape."""
        return node in self._carries

    def between(self, start: fx.Node, end: fx.Node) -> tuple[fx.Node, ...]:
        """Return the data-carrying nodes on paths from `start` (excluded) to `end` (included)."""
        above = self._above(end, start)
        reached = {start}
        for node in sorted(above, key=self.order.__getitem__):
            if any(source in reached for source in node.all_input_nodes):
                reached.add(node)
        return tuple(sorted(reached - {start}, key=self.order.__getitem__))

    def sources(self, inside: Collection[fx.Node]) -> list[fx.Node]:
        """Return the data-carrying nodes outside that some inside read."""
        read = (source for node in inside for source in node.all_input_nodes)
        return list(dict.fromkeys(n for n in read if n not in inside and self.carries(n)))

    def leads(self, start: fx.Node, end: fx.Node) -> bool:
        """Whether data flow from `start` to `end`, which are two nodes."""
        return start in self._above(end, start)

    def escapes(self, node: fx.Node, inside: Collection[fx.Node]) -> bool:
        """Whether a node's value, or what is made from its shape, reaches past `inside`."""
        waiting, seen = list(node.users), set()
        while waiting:
            user = waiting.pop()
            if user in inside or user in seen:
                continue
            seen.add(user)
            if self.carries(user) or user.op == "output":
                return True
            waiting.extend(user.users)
        return False

    def _above(self, end: fx.Node, start: fx.Node) -> dict[fx.Node, None]:
        """Return the data-carrying nodes that `end` is computed from, none from before `start`."""
        first = self.order[start]
        return upstream(end, lambda node: self.carries(node) and self.order[node] >= first)
