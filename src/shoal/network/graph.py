"""A network's graph as it is now: its sites and channels, and what else was found, each once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import fx, nn

from shoal.network.blocks import Block, find_blocks
from shoal.network.flow import Flow, bound_arguments, is_weighted, known_of
from shoal.network.modules import Line, SharedPReLU
from shoal.network.stretches import Stretch, find_stretches

aten = torch.ops.aten

_STATES: dict[type, str] = {Line: "line", nn.Identity: "identity"}


@dataclass(frozen=True)
class Site:
    """One call of a rectifier in the forward graph."""

    name: str  # the path of its module in the network; unique and stable
    kind: str  # the rectifier ("relu", "gelu", …), also after it was linearized
    path: str  # of the original module that calls it
    channel_dim: int  # the dimension of its input that holds the neurons
    channels: int | None  # the number of neurons, None where the shape does not fix it
    linearized: str | None  # "line" or "identity" once it was linearized, else None
    node: fx.Node = field(repr=False, compare=False)  # which calls it

    @property
    def channel_shape(self) -> tuple[int, ...]:
        """The shape of a value for each channel that broadcasts against the input.

        Of images it is [channels, 1, 1]; it is () where the number of channels is not fixed.
        """
        shape = self.node.meta.get("shape")
        if shape is None or self.channels is None:
            return ()
        return (self.channels, *[1] * (len(shape) - 1 - self.channel_dim))


class Graph:
    """A view of a network's graph, good until the network is changed."""

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

    @cached_property
    def calls(self) -> Mapping[str, fx.Node]:
        """The node that calls each module, by the module's path; its first call."""
        found: dict[str, fx.Node] = {}
        for node in self._graph.nodes:
            if node.op == "call_module":
                found.setdefault(str(node.target), node)
        return found

    @cached_property
    def sites(self) -> Mapping[str, Site]:
        """The rectifier sites by name, in the order of the forward pass: those with channels."""
        found = {}
        for name, node in self.calls.items():
            if name in self._records and self.flow.carries(node):
                kind, path = self._records[name]
                shape = node.meta.get("shape")
                if shape is not None and len(shape) < 2:
                    continue  # a value for each sample, without channels: an output's
                dim = self.channel_dim(node.all_input_nodes[0])
                channels = None if shape is None else shape[dim]
                state = _STATES.get(type(self._root.get_submodule(name)))
                found[name] = Site(name, kind, path, dim, channels, state, node)
        return found

    @cached_property
    def blocks(self) -> Mapping[str, Block]:
        """The residual blocks by name, in the order of the forward pass."""
        return find_blocks(self.flow, self._root, self.sites)

    @cached_property
    def stretches(self) -> Mapping[str, Stretch]:
        """What can be collapsed, by name, in the order of the forward pass."""
        return find_stretches(self.flow, self._root, self.sites, self.blocks.values())

    def channel_dim(self, node: fx.Node) -> int:
        """Return the non-negative dimension of the node's value that holds channels or features.

        The nearest layer upstream decides: convolutions and batch norms put channels second, linear
        layers and layer norms last; transpositions in between are followed. Where nothing decides,
        images (4-D, 5-D) and vectors (2-D) have them second, sequences (3-D) last.
        """
        if node not in self._channel_dims:
            dims = len(node.meta.get("shape") or (None, None))
            found = _search(node, self._root, depth=64)
            dim = found if found is not None else {2: 1, 3: 2}.get(dims, 1)
            self._channel_dims[node] = dim % dims
        return self._channel_dims[node]

    def layer_before(self, rectifier: fx.Node) -> str | None:
        """Return the path of the layer with weights that a rectifier follows directly, if any.

        Norms, scales and dropout may lie between. Where it follows the addition of a residual
        block, it is the last layer of the branch.
        """
        ends = {block.addition: block.output for block in self.blocks.values()}
        rectifiers = {site.node for site in self.sites.values() if site.linearized is None}
        node: fx.Node | None = rectifier.all_input_nodes[0]
        while node is not None and not is_weighted(node, self._root):
            known, source = known_of(node, self._root), next(iter(node.all_input_nodes), None)
            norm = node.op == "call_module" and known.channels == "second"
            scales = norm or known.channels == "last" or known.linear in ("scale", "nothing")
            passes = scales and node not in rectifiers and not (known.addition or known.pool)
            node = ends.get(node, source if passes else None)
        return str(node.target) if node is not None and node.op == "call_module" else None


def _search(node: fx.Node, root: nn.Module, depth: int) -> int | None:
    """Return the channel dimension of the output (may be -1), or None if nothing tells."""
    if depth == 0:
        return None
    channels = "kept" if _treats_alike(node, root) else known_of(node, root).channels
    if channels in ("second", "last"):
        return 1 if channels == "second" else -1
    if not node.all_input_nodes:
        return None
    source = node.all_input_nodes[0]
    if node.op == "call_module":
        return _search(source, root, depth - 1)
    if channels == "moved":
        return _through_transposition(node, _search(source, root, depth - 1))
    if channels == "reshaped":
        return _through_reshaping(node, source, _search(source, root, depth - 1))
    for operand in node.all_input_nodes if channels == "kept" else ():
        found = _search(operand, root, depth - 1)
        shapes: list[Any] = [n.meta.get("shape") for n in (node, operand)]
        if found is not None and (None in shapes or len(shapes[0]) == len(shapes[1])):
            return found
    return None


def _treats_alike(node: fx.Node, root: nn.Module) -> bool:
    """Whether a layer's type says where its channels are, but it is made for several dimensions.

    A layer norm over channels, height and width, or a PReLU with one slope, takes any.
    """
    if node.op != "call_module":
        layer_norm = node.target is aten.layer_norm.default
        return layer_norm and len(bound_arguments(node)["normalized_shape"]) > 1
    module = root.get_submodule(str(node.target))
    if isinstance(module, nn.LayerNorm):
        return len(module.normalized_shape) > 1
    owner = module.owner if isinstance(module, SharedPReLU) else module
    return isinstance(owner, nn.PReLU) and owner.num_parameters == 1


def _through_transposition(node: fx.Node, dim: int | None) -> int | None:
    shape = node.meta.get("shape")
    if dim is None or shape is None:
        return None
    rank = len(shape)
    rest: tuple[Any, ...] = node.args[1:]
    if node.target is aten.permute.default:
        return [d % rank for d in rest[0]].index(dim % rank)
    i, j = (int(d) % rank for d in rest[:2])
    return {i: j, j: i}.get(dim % rank, dim % rank)


def _through_reshaping(node: fx.Node, source: fx.Node, dim: int | None) -> int | None:
    """Follow a dimension that keeps its place from the front, or from the back."""
    before, after = source.meta.get("shape"), node.meta.get("shape")
    if dim is None or before is None or after is None:
        return None
    dim %= len(before)
    if before[: dim + 1] == after[: dim + 1]:
        return dim
    if before[dim:] == after[len(after) - len(before[dim:]) :]:
        return dim - len(before)
    return None
