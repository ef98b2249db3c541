"""Exact small rewrites that let regions grow: no-ops go, lines pass through pooling."""

from __future__ import annotations

import torch
from torch import fx, nn

from shoal.network import Network
from shoal.network.modules import Line
from shoal.surgery.linear_ops import linear_map, tensor_shape
from shoal.surgery.rewrite import free_path, put_module_

__all__ = ["simplify_"]

aten = torch.ops.aten

# After one of the first kind, the second one changes nothing.
_ABSORBED = {nn.ReLU: (nn.ReLU, nn.ReLU6), nn.ReLU6: (nn.ReLU6,)}
_MEANS = (aten.adaptive_avg_pool2d.default, aten.adaptive_avg_pool1d.default, aten.mean.dim)


def simplify_(network: Network) -> None:
    """Rewrite a network's graph in place without changing what it computes in eval mode."""
    for node in list(network.graph.nodes):
        found = linear_map(node, network)
        if found is not None and found.layout is None:  # dropout and the like, in eval mode
            _bypass(node, found.source)
        elif node.op == "call_module":
            _drop_doubled_rectifier(node, network)
        elif node.target in _MEANS:
            _take_mean_first(node, network)


def _bypass(node: fx.Node, source: fx.Node) -> None:
    """Let those who read `node` read `source`; a dead reader would make `source` look needed."""
    node.replace_all_uses_with(source)
    node.graph.erase_node(node)


def _drop_doubled_rectifier(node: fx.Node, network: Network) -> None:
    """relu(relu(x)) = relu(x); dropping a block between two rectifiers leaves such a pair."""
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node) or source.op != "call_module":
        return
    outer = network.get_submodule(str(node.target))
    inner = network.get_submodule(str(source.target))
    if type(inner) in _ABSORBED.get(type(outer), ()):
        _bypass(node, source)


def _take_mean_first(node: fx.Node, network: Network) -> None:
    """mean(s·x + t) = s·mean(x) + t: on far fewer values, and next to the layer that follows."""
    source = node.args[0]
    if not isinstance(source, fx.Node) or len(source.users) != 1:
        return
    rank = len(tensor_shape(source))
    found = linear_map(source, network)
    if found is None or found.layout != "conv" or found.make is None:
        return
    if node.target is aten.mean.dim and not _over_positions(node, rank):
        return
    scaling = found.make()
    if not scaling.is_affine:
        return
    like = next((p for p in network.parameters()), torch.empty(0)).detach()
    line = Line(scaling.weight.flatten().to(like), scaling.bias.to(like), 1)
    path = free_path(network, f"{source.meta.get('path', '')}.mean_line".lstrip("."))
    put_module_(network, path, line.train(network.training))
    node.replace_input_with(source, found.source)
    with network.graph.inserting_after(node):
        after = network.graph.call_module(path, (node,))
    after.meta = dict(node.meta)
    node.replace_all_uses_with(after, delete_user_cb=lambda user: user is not after)
    network.graph.erase_node(source)
    _take_mean_first(node, network)


def _over_positions(node: fx.Node, rank: int) -> bool:
    """Whether a mean runs over all spatial dimensions and nothing else."""
    dims = node.args[1]
    if node.kwargs.get("dtype") is not None or not isinstance(dims, (list, tuple)):
        return False
    return {int(d) % rank for d in dims} == set(range(2, rank))  # type: ignore[arg-type]
