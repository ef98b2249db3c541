"""The parameters and buffers that a node computes with, whatever is done to them before.

A layer's weight may be computed in the forward pass: standardised, normalised or transposed. It is
then what a subgraph gives that the input's data do not reach.
"""

from __future__ import annotations

from torch import Tensor, fx, nn

from shoal.network.flow import Flow, reads_shape, upstream
from shoal.network.nodes import lookup_tensor
from shoal.network.ops import op_of

__all__ = ["is_weighted", "own_tensors"]


def is_weighted(node: fx.Node, root: nn.Module) -> bool:
    """Whether a node is a layer with weights (a convolution or a linear map)."""
    if node.op == "call_module":
        return op_of(root.get_submodule(str(node.target))).weighted
    if node.op != "call_function" or not op_of(node.target).weighted:
        return False
    return bool(own_tensors(node, root))


def own_tensors(node: fx.Node, root: nn.Module, flow: Flow | None = None) -> dict[str, Tensor]:
    """Return the parameters and buffers that decide what a node does to its data, by path.

    Args:
        node: of the network's graph.
        root: the captured network.
        flow: of the graph as it is now; spares finding out which operands carry data.
    """
    found = _of_module(node, root)
    for operand in node.all_input_nodes:
        if flow is not None and flow.carries(operand):
            continue
        for source in _constant_sources(operand):
            found |= _of_module(source, root)
            if source.op == "get_attr":
                value = lookup_tensor(root, str(source.target))
                if value is not None:
                    found[str(source.target)] = value
    return found


def _of_module(node: fx.Node, root: nn.Module) -> dict[str, Tensor]:
    if node.op != "call_module":
        return {}
    module, path = root.get_submodule(str(node.target)), str(node.target)
    own = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    return {f"{path}.{name}": value for name, value in own}


def _constant_sources(operand: fx.Node) -> list[fx.Node]:
    """Return all nodes that an operand is computed from; none if the input's data are among it."""
    found = list(upstream(operand, lambda node: not reads_shape(node)))
    return [] if any(node.op == "placeholder" for node in found) else found
