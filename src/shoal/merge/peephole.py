"""Exact small rewrites that let regions grow: no-ops go, pointwise layers pass through pooling."""

from __future__ import annotations

import torch
from torch import fx, nn

from shoal.merge.conv_map import ConvMap
from shoal.merge.linear_ops import linear_map, tensor_shape
from shoal.network import Network
from shoal.network.flow import is_frozen, own_tensors
from shoal.network.modules import Line
from shoal.network.ops import op_of
from shoal.network.rewrite import free_path, put_module_

aten = torch.ops.aten


def simplify_(network: Network, *, pool_first: bool = False) -> None:
    """Rewrite a network's graph in place, not compiled again, to compute the same in eval mode.

    With `pool_first`, 1×1 convolutions before a mean over the image come after it, as lines do.
    """
    for node in list(network.graph.nodes):
        found = linear_map(node, network)
        if found is not None and found.layout is None:  # dropout and the like, in eval mode
            _bypass(node, found.source)
        elif node.op == "call_module":
            _drop_doubled_rectifier(node, network)
        elif op_of(node.target).pool == "mean":
            _take_mean_first(node, network, layers=pool_first)


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
    if type(inner) in op_of(outer).absorbed:
        _bypass(node, source)


def _take_mean_first(node: fx.Node, network: Network, *, layers: bool) -> None:
    """mean(W·x + t) = W·mean(x) + t: on far fewer values, and next to the layer that follows."""
    source = node.args[0]
    if not isinstance(source, fx.Node) or len(source.users) != 1:
        return
    found = linear_map(source, network)
    if found is None or found.layout != "conv" or found.make is None:
        return
    if node.target is aten.mean.dim and not _over_positions(node, len(tensor_shape(source))):
        return
    pointwise = found.make()
    if not pointwise.is_affine and not layers:
        return
    shape = tensor_shape(node)
    like = next(network.parameters(), torch.empty(0)).detach()
    layer = _after_mean(pointwise, len(shape), like)
    if layer is None:
        return
    if is_frozen(own_tensors(source, network).values()):
        layer.requires_grad_(False)
    path = free_path(network, f"{source.meta.get('path', '')}.after_mean".lstrip("."))
    put_module_(network, path, layer.train(network.training))
    node.replace_input_with(source, found.source)
    with network.graph.inserting_after(node):
        after = network.graph.call_module(path, (node,))
    after.meta = dict(node.meta)
    node.meta["shape"] = (shape[0], pointwise.channels_in, *shape[2:])
    node.replace_all_uses_with(after, delete_user_cb=lambda user: user is not after)
    network.graph.erase_node(source)
    _take_mean_first(node, network, layers=layers)


def _after_mean(pointwise: ConvMap, rank: int, like: torch.Tensor) -> nn.Module | None:
    """Return the layer that does after a mean what a pointwise map did before it; None for others.

    `rank` is that of what the mean gives: 2 where the positions are gone.
    """
    if pointwise.is_affine:
        return pointwise.layers(like)[0]
    if not pointwise.is_pointwise or any(step != 1 for step in pointwise.stride):
        return None
    sizes, groups = (pointwise.channels_in, pointwise.channels_out), pointwise.groups
    layer: nn.Linear | nn.Conv2d  # with a bias in any case: it follows from the structure alone
    if rank == 2 and groups == 1:
        layer = nn.Linear(*sizes)
    elif rank == 4 and pointwise.spatial == 2:
        layer = nn.Conv2d(*sizes, 1, groups=groups)
    else:
        return None
    weight = pointwise.weight.reshape(layer.weight.shape)
    layer.weight = nn.Parameter(weight.to(like, copy=True))
    layer.bias = nn.Parameter(pointwise.bias.to(like, copy=True))
    return layer


def _over_positions(node: fx.Node, rank: int) -> bool:
    """Whether a mean runs over all spatial dimensions and nothing else."""
    dims = node.args[1]
    if node.kwargs.get("dtype") is not None or not isinstance(dims, (list, tuple)):
        return False
    return {int(d) % rank for d in dims} == set(range(2, rank))  # type: ignore[arg-type]


def fix_lines(network: Network) -> bool:
    """Shape the lines that are left for the tensors they read; returns whether one was not."""
    before = {name: value.shape for name, value in network.state_dict().items()}
    for node in network.graph.nodes:
        module = network.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, Line):
            module.fix_rank(len(tensor_shape(node)))
    return before != {name: value.shape for name, value in network.state_dict().items()}
