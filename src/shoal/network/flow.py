"""What one node of a graph does, and how the input's data flow through them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable
from typing import Any

from torch import Tensor, fx, nn
from torch._ops import OpOverload

from shoal.network.ops import Op, op_of
from shoal.network.paths import lookup_tensor


def known_of(node: fx.Node, root: nn.Module) -> Op:
    """Return what is known of what a node calls, be it a module of `root` or a function."""
    if node.op == "call_module":
        return op_of(root.get_submodule(str(node.target)))
    return op_of(node.target if node.op == "call_function" else None)


def module_path(node: fx.Node) -> str:
    """Return the path of the innermost original module whose forward pass made `node`."""
    stack = node.meta.get("nn_module_stack") or {}
    # The root's own code has a placeholder of PyTorch's here in some exports.
    paths = [path for path, _ in stack.values() if not path.startswith("_empty_nn_module_stack")]
    return str(paths[-1]) if paths else ""


def bound_arguments(node: fx.Node) -> dict[str, Any]:
    """Return the call's arguments by the names of its schema, defaults filled in."""
    assert isinstance(node.target, OpOverload)
    schema = node.target._schema.arguments
    given = {**dict(zip((arg.name for arg in schema), node.args, strict=False)), **node.kwargs}
    return {arg.name: given.get(arg.name, arg.default_value) for arg in schema}


def shape_of(node: fx.Node) -> dict[str, Any]:
    """Return the output's shape (None for the batch and all that follows from it) and dtype."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return {}
    shape = tuple(s if isinstance(s, int) else None for s in value.shape)
    return {"shape": shape, "dtype": value.dtype}


def makes_memory(node: fx.Node) -> bool:
    """Whether a call makes a new tensor out of nothing but a shape, as masks are made."""
    if not isinstance(node.target, OpOverload):
        return False
    name = node.target._schema.name.removeprefix("aten::").removeprefix("new_")
    return name.removesuffix("_like") in ("zeros", "ones", "full", "empty", "arange", "eye")


def writes(node: fx.Node) -> bool:
    """Whether a node calls an operation that changes a tensor in place."""
    return isinstance(node.target, OpOverload) and node.target._schema.is_mutable


def reads_shape(node: fx.Node) -> bool:
    """Whether a call reads its operand's shape or place only."""
    return node.op == "call_function" and op_of(node.target).shape_only


# ---------------------------------------------------------------------- flow


def upstream(end: fx.Node, passes: Callable[[fx.Node], bool]) -> dict[fx.Node, None]:
    """Return `end` and what it is computed from, up to what does not pass."""
    found: dict[fx.Node, None] = {}
    waiting = [end]
    while waiting:
        node = waiting.pop()
        if node not in found and passes(node):
            found[node] = None
            waiting.extend(node.all_input_nodes)
    return found


class Flow:
    """The part of a graph that carries the input's data, with immediate dominators.

    Node d dominates node n if all data reach n through d. The immediate dominator of an addition
    is the tensor where its two operands part. The nodes have their shapes in `meta`.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self.order = {node: i for i, node in enumerate(graph.nodes)}
        self.dominator: dict[fx.Node, fx.Node | None] = {}  # of the nodes that carry data
        self._depth: dict[fx.Node | None, int] = {None: 0}
        for node in graph.nodes:
            sources = [n for n in node.all_input_nodes if self.carries(n)]
            enters = node.op == "placeholder" and "shape" in node.meta
            if enters or (sources and not reads_shape(node)):
                self.dominator[node] = functools.reduce(self._meet, sources) if sources else None
                self._depth[node] = self._depth[self.dominator[node]] + 1

    def _meet(self, a: fx.Node | None, b: fx.Node | None) -> fx.Node | None:
        while a is not b:
            if self._depth[a] < self._depth[b]:
                a, b = b, a
            a = self.dominator[a] if a is not None else None
        return a

    def carries(self, node: fx.Node) -> bool:
        """Whether the node's value depends on the input's data, not only on its shape."""
        return node in self.dominator

    def between(self, start: fx.Node, end: fx.Node) -> tuple[fx.Node, ...]:
        """Return the data-carrying nodes on paths from `start` (excluded) to `end` (included)."""
        reached = {start: None}
        for node in sorted(self._above(end, start), key=self.order.__getitem__):
            if not reached.keys().isdisjoint(node.all_input_nodes):
                reached[node] = None
        return tuple(reached)[1:]

    def sources(self, inside: Collection[fx.Node]) -> list[fx.Node]:
        """Return the data-carrying nodes outside that some inside read."""
        read = (source for node in inside for source in node.all_input_nodes)
        return list(dict.fromkeys(n for n in read if n not in inside and self.carries(n)))

    def leads(self, start: fx.Node, end: fx.Node) -> bool:
        """Whether data flow from `start` to `end`, which are two nodes."""
        return start in self._above(end, start)

    def escapes(self, node: fx.Node, inside: Collection[fx.Node]) -> bool:
        """Whether a node's value, or what is made from its shape, reaches past `inside`."""
        waiting, seen = list(node.users), set()
        while waiting:
            user = waiting.pop()
            if user in inside or user in seen:
                continue
            seen.add(user)
            if self.carries(user) or user.op == "output":
                return True
            waiting.extend(user.users)
        return False

    def _above(self, end: fx.Node, start: fx.Node) -> dict[fx.Node, None]:
        """Return the data-carrying nodes that `end` is computed from, none from before `start`."""
        first = self.order[start]
        return upstream(end, lambda node: self.carries(node) and self.order[node] >= first)


# ---------------------------------------------------------------------- weights


def is_weighted(node: fx.Node, root: nn.Module) -> bool:
    """Whether a node is a layer with weights (a convolution or a linear map)."""
    weighted = known_of(node, root).weighted
    return weighted and (node.op == "call_module" or bool(own_tensors(node, root)))


def is_frozen(tensors: Iterable[Tensor]) -> bool:
    """Return whether there are parameters among some tensors, and none of them is trained."""
    own = [tensor for tensor in tensors if isinstance(tensor, nn.Parameter)]
    return bool(own) and not any(parameter.requires_grad for parameter in own)


def own_tensors(node: fx.Node, root: nn.Module, flow: Flow | None = None) -> dict[str, Tensor]:
    """Return the parameters and buffers that decide what a node does to its data, by path.

    A weight may be computed in the forward pass (standardised, say), by a subgraph that the input's
    data do not reach. A `flow` of the graph as it is now spares finding that out.
    """
    found: dict[str, Tensor] = {}

    def add(node: fx.Node) -> None:
        path = str(node.target)
        if node.op == "call_module":
            module = root.get_submodule(path)
            own = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
            found.update((f"{path}.{name}", value) for name, value in own)
        elif node.op == "get_attr" and (value := lookup_tensor(root, path)) is not None:
            found[path] = value

    add(node)
    for operand in node.all_input_nodes:
        if flow is not None and flow.carries(operand):
            continue
        sources = upstream(operand, lambda node: not reads_shape(node))
        for source in sources if all(n.op != "placeholder" for n in sources) else ():
            add(source)
    return found
