"""Weights that a network computes from parameters alone, computed once: their layers can merge.

Weight and spectral norm, pruning masks and standardised weights leave calls such as
`conv2d(x, norm(w), b)`. In eval mode what does not read the input is a constant.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload

from shoal.network import Network
from shoal.network.flow import bound_arguments, is_frozen, own_tensors, upstream, writes
from shoal.network.modules import ByMode
from shoal.network.ops import op_of
from shoal.network.raising import TENSOR_NAMES
from shoal.network.rewrite import free_path, put_module_, remove_dead_
from shoal.network.runner import constant_values


def fix_weights_(network: Network) -> None:
    """Put ordinary layers where a network computes their weights from parameters alone.

    In place; in eval mode it computes the same as before, and no longer trains these parameters.
    """
    found = {node: _constants(node, network) for node in network.graph.nodes}
    waiting = {node: tensors for node, tensors in found.items() if tensors}
    if not waiting:
        return
    wanted = {tensor for tensors in waiting.values() for tensor in tensors.values()}
    with torch.no_grad():
        values = constant_values(network, wanted)
    calls = []
    for node, tensors in waiting.items():
        known = {name: values[tensor].detach() for name, tensor in tensors.items()}
        layer = _layer(node, network, known)
        if layer is None:
            continue
        if is_frozen(own_tensors(node, network).values()):
            layer.requires_grad_(False)
        path = free_path(network, "fixed")
        put_module_(network, path, layer.train(network.training))
        with network.graph.inserting_after(node):
            call = network.graph.call_module(path, (_source(_call_of(node, network)[1]),))
        call.meta = {key: value for key, value in node.meta.items() if key != "opaque"}
        node.replace_all_uses_with(call)
        calls.append(call)
    remove_dead_(network)
    for call in calls:  # to the place of the layer that it was, where that is free now
        path = free_path(network, str(call.meta.get("path") or "layer"))
        put_module_(network, path, network.get_submodule(str(call.target)))
        del network._modules[str(call.target)]
        call.target = path
    network.recompile()


def _constants(node: fx.Node, network: Network) -> dict[str, fx.Node]:
    """Return by name the tensors of a layer's call, if all are known and some are computed."""
    operation, given = _call_of(node, network)
    if op_of(operation).layer is None:
        return {}
    tensors = {name: given[name] for name in TENSOR_NAMES if isinstance(given.get(name), fx.Node)}
    computed = any(tensor.op != "get_attr" for tensor in tensors.values())
    return tensors if computed and all(map(_is_constant, tensors.values())) else {}


def _call_of(node: fx.Node, network: Network) -> tuple[Any, dict[str, Any]]:
    """Return the operation that a node calls in eval mode, and its arguments by name."""
    if isinstance(node.target, OpOverload):
        return node.target, bound_arguments(node)
    layer = network.get_submodule(str(node.target)) if node.op == "call_module" else None
    if not isinstance(layer, ByMode):
        return None, {}
    names = [argument.name for argument in layer.operation._schema.arguments]
    given = dict(zip(names, node.args, strict=True))
    return layer.operation, {**given, names[layer.index]: layer.in_eval}


def _is_constant(node: fx.Node) -> bool:
    """Whether a value depends on nothing but parameters and buffers, and is the same each time."""
    return all(
        source.target is getattr  # of the input's type or place
        or not (_reads_input(source) or writes(source) or _is_random(source))
        for source in upstream(node, lambda source: source.op != "placeholder")
    )


def _reads_input(node: fx.Node) -> bool:
    return any(source.op == "placeholder" for source in node.all_input_nodes)


def _is_random(node: fx.Node) -> bool:
    tags = node.target.tags if isinstance(node.target, OpOverload) else ()
    return torch.Tag.nondeterministic_seeded in tags


def _source(given: Mapping[str, Any]) -> Any:
    """Return what a layer's call reads: of an embedding, the indices."""
    return given.get("input", given.get("indices"))


def _layer(node: fx.Node, network: Network, tensors: Mapping[str, Tensor]) -> nn.Module | None:
    """Return the layer that a call is with these tensors; None if there is none."""
    operation, given = _call_of(node, network)
    source = _source(given)
    if not isinstance(source, fx.Node) or "shape" not in source.meta:
        return None
    arguments = {**given, **tensors, "input_dim": len(source.meta["shape"]), "in_training": True}
    make: Any = op_of(operation).layer
    layer = make(arguments, None)
    if not isinstance(layer, nn.Module):
        return None
    for name, tensor in tensors.items():
        if name in layer._parameters:
            layer._parameters[name] = nn.Parameter(tensor.clone())
        else:
            layer._buffers[name] = tensor.clone()
    return layer
