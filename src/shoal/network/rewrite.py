"""Change a captured graph: put layers in the place of a stretch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import fx, nn

from shoal.network.flow import reads_shape, upstream
from shoal.network.modules import OnesChannel
from shoal.network.network import Network
from shoal.network.nodes import numbered, tables_of

__all__ = ["between", "free_path", "is_closed", "put_module_", "replace_stretch_"]


def between(start: fx.Node, end: fx.Node) -> set[fx.Node]:
    """Return the nodes whose values `end` needs (itself included) without going past `start`."""
    ends = ("placeholder", "get_attr")
    return set(upstream(end, lambda n: n is not start and n.op not in ends and not reads_shape(n)))


def is_closed(start: fx.Node, end: fx.Node) -> bool:
    """Whether nothing between the two tensors is needed elsewhere."""
    inside = between(start, end)
    return all(_stays(user, inside) for node in inside - {end} for user in node.users)


def _stays(user: fx.Node, inside: set[fx.Node]) -> bool:
    """Whether what a node makes of a tensor, or of its shape, is needed inside only."""
    if user in inside:
        return True
    return reads_shape(user) and all(_stays(later, inside) for later in user.users)


def free_path(network: Network, path: str) -> str:
    """Return `path`, or the first of path_1, path_2, … that names nothing yet."""
    return numbered(path, lambda name: _taken(network, name))


def _taken(network: Network, path: str) -> bool:
    parent, _, name = path.rpartition(".")
    try:
        module = network.get_submodule(parent) if parent else network._root
    except AttributeError:
        return False
    return any(name in table for table in tables_of(module))


def put_module_(network: Network, path: str, module: nn.Module) -> None:
    """Put a module at `path`, in the place of what is there or making the containers on the way."""
    parent: nn.Module = network._root
    *containers, name = path.split(".")
    for part in containers:
        child = parent._modules.get(part)
        if child is None:
            child = parent._modules[part] = nn.Module()
        parent = child
    old = parent._modules.get(name)
    if old is not None:  # modules may live below a layer, as an activation below its norm
        module._modules.update(old._modules)
    parent._modules[name] = module
    network.changed()


def _output_shape(layer: nn.Module, shape: Sequence[int | None]) -> tuple[int | None, ...]:
    """Return the shape that a layer gives for one; sizes that are not known stay so."""
    batch, *rest = shape
    if isinstance(layer, nn.Linear):
        return (batch, *rest[:-1], layer.out_features)
    if isinstance(layer, OnesChannel):
        return (batch, None if rest[0] is None else rest[0] + 1, *rest[1:])
    if not isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return (batch, *rest)
    sizes: list[int | None] = []
    for axis, size in enumerate(rest[1:]):
        reach = layer.dilation[axis] * (layer.kernel_size[axis] - 1) + 1
        padding = layer.padding[axis] if not isinstance(layer.padding, str) else 0
        assert isinstance(padding, int)
        known = None if size is None else (size + 2 * padding - reach) // layer.stride[axis] + 1
        sizes.append(known)
    return (batch, layer.out_channels, *sizes)


def replace_stretch_(
    network: Network,
    start: fx.Node,
    end: fx.Node,
    layers: Sequence[tuple[str, nn.Module]],
    *,
    flatten: str | None = None,
) -> fx.Node:
    """Compute `end` from `start` by layers in a row; dead nodes stay until `remove_dead_`.

    Args:
        network: changed in place, not compiled.
        start: the tensor that is read.
        end: the tensor that is replaced for all who read it.
        layers: paths and modules, in order; none hands `start` on as it is.
        flatten: "before" or "after" the layers, to [N, features]; None for not at all.

    Returns:
        The node that now gives the tensor.
    """
    graph = network.graph
    node, last = start, end

    def flattened(node: fx.Node) -> fx.Node:
        flat = graph.call_function(torch.ops.aten.flatten.using_ints, (node, 1))
        flat.meta = {key: end.meta[key] for key in ("shape", "dtype", "path") if key in end.meta}
        return flat

    if flatten == "before":
        with graph.inserting_after(last):
            node = last = flattened(node)
        shape = start.meta["shape"]
        node.meta["shape"] = (shape[0], math.prod(shape[1:]))
    for path, module in layers:
        put_module_(network, path, module.train(network.training))
        before = node.meta.get("shape")
        with graph.inserting_after(last):
            node = last = graph.call_module(path, (node,))
        node.meta = {key: end.meta[key] for key in ("shape", "dtype") if key in end.meta}
        if before is not None and (flatten == "after" or module is not layers[-1][1]):
            node.meta["shape"] = _output_shape(module, before)
        node.meta["path"] = path.rpartition(".")[0]
    if flatten == "after":
        with graph.inserting_after(last):
            node = flattened(node)
    end.replace_all_uses_with(node)
    return node
