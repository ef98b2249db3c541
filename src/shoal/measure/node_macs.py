"""The work of each node of a captured network, in multiply-accumulates (MACs)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx, nn
from typing_extensions import override

from shoal.measure.macs import count_macs
from shoal.modes import eval_mode
from shoal.network import Network
from shoal.network.inputs import Inputs
from shoal.network.runner import Runner

__all__ = ["count_node_macs"]


def count_node_macs(network: Network, inputs: Inputs) -> dict[str, int]:
    """Count the multiply-accumulates of each node with any, by name, on one sample.

    Arguments and errors are those of `count_macs`.
    """
    with eval_mode(network):
        counted = count_macs(_NodeByNode(network), inputs).by_module
    return {path.removeprefix("nodes."): macs for path, macs in counted.items()}


class _NodeByNode(nn.Module):
    """Runs a network's graph with a module for each node, so that each one's work is counted."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.nodes = nn.ModuleDict({node.name: _Node() for node in network.graph.nodes})
        self._flatten = network.inputs.flatten
        self._runner = _Runner(network, self.nodes)

    def forward(self, *args: Any, **kwargs: Any) -> None:
        self._runner.values(*self._flatten(args, kwargs))


class _Node(nn.Module):
    def forward(self, run: Callable[[fx.Node], Any], node: fx.Node) -> Any:
        return run(node)


class _Runner(Runner):
    def __init__(self, network: Network, modules: nn.ModuleDict) -> None:
        super().__init__(network)
        self.modules = modules

    @override
    def run_node(self, n: fx.Node) -> Any:
        return self.modules[n.name](super().run_node, n)
