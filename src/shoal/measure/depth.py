"""The depth of a network: layers with weights on the longest path from input to output."""

from __future__ import annotations

from typing import Any

from torch import fx, nn
from torch._ops import OpOverload

from shoal.errors import ConfigError
from shoal.network.flow import bound_arguments
from shoal.network.ops import op_of
from shoal.network.paths import lookup_tensor


def depth(network: nn.Module) -> int:
    """Return the number of layers with weights on the longest path from input to output.

    Convolutions and linear layers count, as modules or as functions applied to a parameter, and so
    does each layer of a recurrent stack (not its steps in time) and each of the two projections of
    an `nn.MultiheadAttention`. Normalisation, embeddings, rectifiers with parameters, per-channel
    lines, and layers that see no input do not. So ResNet-18 has depth 18: the convolutions in its
    shortcuts are on no longest path. A module that the graph calls as a whole counts as the chain
    of the layers in it.

    Args:
        network: a captured network, or any module with an `fx.Graph` as its attribute `graph`.

    Raises:
        ConfigError: `network` has no graph.
    """
    graph = getattr(network, "graph", None)
    if not isinstance(graph, fx.Graph):
        raise ConfigError(
            f"the depth of a {type(network).__name__} is not known, because it has no graph: "
            "pass shoal.capture(model, example_inputs)"
        )
    return _longest_path(network, graph)


def _longest_path(network: nn.Module, graph: fx.Graph) -> int:
    lengths: dict[fx.Node, int] = {}  # layers before and in each node that depends on the input
    weighted: set[fx.Node] = set()  # nodes that depend on a parameter and not on the input
    for node in graph.nodes:
        sources = node.all_input_nodes
        before = [lengths[source] for source in sources if source in lengths]
        if node.op == "placeholder":
            lengths[node] = 0
        elif before:
            lengths[node] = max(before) + _layers_of(network, node, weighted)
            _pass_on_writes(node, lengths)
        elif not weighted.isdisjoint(sources) or (
            node.op == "get_attr"
            and isinstance(lookup_tensor(network, str(node.target)), nn.Parameter)
        ):
            weighted.add(node)
        if node.op == "output":
            return lengths.get(node, 0)
    return 0


def _layers_of(network: nn.Module, node: fx.Node, weighted: set[fx.Node]) -> int:
    """Return how many layers with weights this one node adds to a path through it."""
    if node.op == "call_module":
        return _layers_in(network.get_submodule(str(node.target)))
    if weighted.isdisjoint(node.all_input_nodes) or not node.op.startswith("call_"):
        return 0
    op = op_of(f"aten.{_target_name(node.target)}")
    if not op.depth:
        return int(op.weighted)  # if an operand comes from a parameter alone
    known = bound_arguments(node) if isinstance(node.target, OpOverload) else {}
    layers = known.get(op.depth)
    return layers if isinstance(layers, int) else 1


def _layers_in(module: nn.Module) -> int:
    if isinstance(module, nn.MultiheadAttention):
        return 2  # queries, keys and values side by side, then the output projection
    op = op_of(module)
    if op.depth:
        return int(getattr(module, op.depth))
    if op.weighted:
        return 1
    graph = getattr(module, "graph", None)
    if isinstance(graph, fx.Graph):
        return _longest_path(module, graph)
    return sum(_layers_in(child) for child in module.children())


def _target_name(target: Any) -> str:
    """Return 'linear' for `aten.linear.default`, `F.linear` and a method of that name."""
    if isinstance(target, OpOverload):
        return str(target._opname).rstrip("_")
    name = target if isinstance(target, str) else getattr(target, "__name__", "")
    if name.startswith("__"):  # of an operator, as in `__rmatmul__`
        return str(name).removeprefix("__r").removeprefix("__").removesuffix("__")
    return str(name).rstrip("_")


def _pass_on_writes(node: fx.Node, lengths: dict[fx.Node, int]) -> None:
    """Let what an in-place operation wrote count for the tensor it wrote to, through its views."""
    if not isinstance(node.target, OpOverload) or not node.target._schema.is_mutable:
        return
    for argument, value in zip(node.target._schema.arguments, node.args, strict=False):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        while isinstance(value, fx.Node):
            lengths[value] = max(lengths.get(value, 0), lengths[node])
            is_view = isinstance(value.target, OpOverload) and value.target.is_view
            value = value.args[0] if is_view else None
