"""A network's graph as it is now, with what was found in it: each analysis runs once."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

from torch import fx, nn

from shoal.network.blocks import Block, find_blocks
from shoal.network.channels import channel_dim
from shoal.network.flow import Flow
from shoal.network.sites import Site, find_sites
from shoal.network.stretches import Stretch, find_stretches

__all__ = ["Graph"]


class Graph:
    """A view of a network's graph, good until the network is changed.

    Args:
        graph: of a captured network.
        root: where modules and tensors are found.
        records: kind and path of each site, by name.
    """

    def __init__(
        self, graph: fx.Graph, root: nn.Module, records: Mapping[str, tuple[str, str]]
    ) -> None:
        self._graph = graph
        self._root = root
        self._records = records
        self._channel_dims: dict[fx.Node, int] = {}

    @cached_property
    def flow(self) -> Flow:
        """Which nodes carry the input's data, and their immediate dominators."""
        return Flow(self._graph)

    @property
    def order(self) -> Mapping[fx.Node, int]:
        """The place of each node, from 0."""
        return self.flow.order

    @cached_property
    def calls(self) -> Mapping[str, fx.Node]:
        """The node that calls each module, by the module's path; its first call."""
        nodes = [node for node in self._graph.nodes if node.op == "call_module"]
        return {str(node.target): node for node in reversed(nodes)}

    @cached_property
    def sites(self) -> Mapping[str, Site]:
        """The rectifier sites by name, in the order of the forward pass."""
        sites = find_sites(self._graph, self._root, self._records)
        return {site.name: site for site in sites}

    @cached_property
    def blocks(self) -> Mapping[str, Block]:
        """The residual blocks by name, in the order of the forward pass."""
        blocks = find_blocks(self.flow, self._root, self.sites)
        return {block.name: block for block in blocks}

    @cached_property
    def stretches(self) -> Mapping[str, Stretch]:
        """What can be collapsed, by name, in the order of the forward pass."""
        blocks = list(self.blocks.values())
        stretches = find_stretches(self.flow, self._root, self.sites, blocks)
        return {stretch.name: stretch for stretch in stretches}

    def channel_dim(self, node: fx.Node) -> int:
        """Return the non-negative dimension of the node's value that holds channels or features."""
        if node not in self._channel_dims:
            self._channel_dims[node] = channel_dim(node, self._root)
        return self._channel_dims[node]
