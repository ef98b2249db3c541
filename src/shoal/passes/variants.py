"""Outputs of many variants of a network that differ from it in one place each.

The network runs once per batch. A variant puts another value in the place of one node's and runs
only what comes after that node.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from torch import fx
from torch._ops import OpOverload
from torch.utils import _pytree as pytree

from shoal.network import Network
from shoal.network.listen import Stretch

__all__ = ["Variants"]


class Variants:
    """Runs a network whole, then again from any of the given nodes on.

    Between a run and its variants the values that the variants start from are held: for a residual
    network about one tensor per block.

    Args:
        network: the captured network; it must not be changed while this is used.
        nodes: those whose values may be replaced.
        reads: further nodes whose values `value` shall tell after a run, to make replacements of.
        watch: nodes whose values `watched` shall tell after a run or a variant.
    """

    def __init__(
        self,
        network: Network,
        nodes: Sequence[fx.Node],
        *,
        reads: Collection[fx.Node] = (),
        watch: Collection[fx.Node] = (),
    ) -> None:
        self._network = network
        graph = list(network.graph.nodes)
        self._inputs = [node for node in graph if node.op == "placeholder"]
        self._output = next(node for node in graph if node.op == "output")
        self._watch = tuple(watch)
        ends = {self._output, *watch}
        self._later = {node: Stretch(_downstream(node, graph), ends) for node in nodes}
        held = {*ends, *reads}
        for node, stretch in self._later.items():
            inside = {node, *stretch.nodes}
            held |= {n for later in stretch.nodes for n in later.all_input_nodes} - inside
        self._whole = Stretch(graph, held)
        self._values: dict[fx.Node, Any] = {}
        self._latest: dict[fx.Node, Any] = {}

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Run the network itself on a batch, called like it; returns what it returns."""
        self._values = self._latest = {}  # let the former batch go first
        leaves = self._network._inputs.flatten(args, kwargs)
        values = dict(zip(self._inputs, leaves, strict=True))
        self._whole.run(values, self._network._root)
        self._values = self._latest = values
        return self._result(values)

    def value(self, node: fx.Node) -> Any:
        """Return the value of one of the `reads` in the last run."""
        return self._values[node]

    def with_override(self, node: fx.Node, value: Any) -> Any:
        """Return what the network gives on the last run's batch if `node` had this value."""
        values = {**self._values, node: value}
        for later in self._later[node].nodes:
            values.pop(later, None)
        self._later[node].run(values, self._network._root)
        self._latest = values
        return self._result(values)

    def watched(self, node: fx.Node) -> Any:
        """Return the value of one of the `watch` in the last run or variant."""
        return self._latest[node]

    def _result(self, values: dict[fx.Node, Any]) -> Any:
        outputs = list(values[self._output])
        return pytree.tree_unflatten(outputs, self._network._output_structure)


def _downstream(start: fx.Node, graph: Sequence[fx.Node]) -> list[fx.Node]:
    """Return the nodes that a change of `start` reaches, in the order of the graph."""
    reached = {start}
    for node in graph:
        if any(source in reached for source in node.all_input_nodes):
            reached.add(node)
    reached.discard(start)
    later = [node for node in graph if node in reached]
    if any(_writes(node) for node in later):
        # Memory that is written into has to be made anew, so everything is run again.
        return [node for node in graph if node is not start and node.op != "placeholder"]
    return later


def _writes(node: fx.Node) -> bool:
    return isinstance(node.target, OpOverload) and node.target._schema.is_mutable
