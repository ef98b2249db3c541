"""The work of each node of a captured network, in multiply-accumulates (MACs)."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from shoal.measure.macs import count_macs
from shoal.modes import eval_mode
from shoal.network import Network
from shoal.network.inputs import Inputs
from shoal.network.listen import Stretch

__all__ = ["count_node_macs"]


def count_node_macs(network: Network, inputs: Inputs) -> dict[str, int]:
    """Count the multiply-accumulates that each node spends on one sample; see `count_macs`.

    Args:
        network: the captured network; it is left as it is.
        inputs: a tensor, a tuple of them, or a dict of keyword inputs, batch first.

    Returns:
        MACs by the node's name, without those that have none.

    Raises:
        ConfigError: the network cannot be called with these inputs.
    """
    with eval_mode(network):
        counted = count_macs(_NodeByNode(network), inputs).by_module
    return {path.removeprefix("nodes."): macs for path, macs in counted.items()}


class _NodeByNode(nn.Module):
    """Runs a network's graph with a module for each node, so that its work can be told apart."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        nodes = list(network.graph.nodes)
        self.nodes = nn.ModuleDict({node.name: _Node(node, network) for node in nodes})
        self._leaves = network._inputs.flatten
        self._inputs = [node for node in nodes if node.op == "placeholder"]

    def forward(self, *args: Any, **kwargs: Any) -> None:
        values = dict(zip(self._inputs, self._leaves(args, kwargs), strict=True))
        for node in self.nodes.values():
            node(values)


class _Node(nn.Module):
    def __init__(self, node: fx.Node, network: Network) -> None:
        super().__init__()
        stretch, root = Stretch([node], keep=[node]), network._root
        self._run = lambda values: stretch.run(values, root)  # the root is not to be a child

    def forward(self, values: dict[fx.Node, Any]) -> None:
        self._run(values)
