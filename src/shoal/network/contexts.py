"""Flatten the parts of an exported graph that run without gradients or with another autocast.

`torch.export` puts what a model computes under `torch.no_grad()` or `torch.autocast(...)` into a
graph of its own. Here it is put back between a node that enters the context and one that leaves
it, so that the layers and rectifiers inside are found like any others.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx
from torch.amp.autocast_mode import _enter_autocast, _exit_autocast
from torch.fx.node import map_arg

_AUTOCAST = torch.ops.higher_order.wrap_with_autocast
_GRADIENT = torch.ops.higher_order.wrap_with_set_grad_enabled

# Nodes that must stay, in their place, though nothing may read them.
CONTEXT_CALLS = (
    _enter_autocast, _exit_autocast, torch.is_grad_enabled, torch._C._set_grad_enabled,
)  # fmt: skip


def flatten_contexts(module: fx.GraphModule) -> None:
    """Inline, in place, every autocast or gradient context of an exported module."""
    graph = module.graph
    contexts = (_AUTOCAST, _GRADIENT)
    while inner := [node for node in graph.nodes if node.target in contexts]:
        for node in inner:  # each may hold another
            _inline(module, node)
    used = {str(node.target) for node in graph.nodes if node.op == "get_attr"}
    for name, child in list(module._modules.items()):
        if isinstance(child, fx.GraphModule) and name not in used:
            del module._modules[name]


def _inline(module: fx.GraphModule, node: fx.Node) -> None:
    options = 4 if node.target is _AUTOCAST else 1
    holder: Any = node.args[options]
    body: Any = module.get_submodule(str(holder.target))
    inputs = iter(node.args[options + 1 :])
    inner: dict[fx.Node, Any] = {}
    graph, results = module.graph, ()
    with graph.inserting_before(node):
        leave = _enter(graph, node, node.args[:options])
        for step in body.graph.nodes:
            if step.op == "placeholder":
                inner[step] = next(inputs)
            elif step.op == "output":
                results = map_arg(step.args[0], inner.__getitem__)
            else:
                inner[step] = graph.node_copy(step, inner.__getitem__)
        leave()
    for user in list(node.users):
        assert user.target is operator.getitem
        user.replace_all_uses_with(results[user.args[1]])  # type: ignore[index]
        graph.erase_node(user)
    graph.erase_node(node)
    if not holder.users:
        graph.erase_node(holder)


def _enter(graph: fx.Graph, node: fx.Node, options: tuple[Any, ...]) -> Any:
    """Insert what enters a context; return a function that inserts what leaves it."""
    if node.target is _AUTOCAST:
        mode = graph.call_function(_enter_autocast, options)
        return lambda: graph.call_function(_exit_autocast, (mode,))
    before = graph.call_function(torch.is_grad_enabled)
    graph.call_function(torch._C._set_grad_enabled, options)
    return lambda: graph.call_function(torch._C._set_grad_enabled, (before,))


def context_device(graph: fx.Graph) -> str | None:
    """Return the device type whose autocast the graph's contexts concern; None without contexts."""
    contexts = [node for node in graph.nodes if node.target in CONTEXT_CALLS]
    devices = [str(node.args[0]) for node in contexts if node.target is _enter_autocast]
    return (devices or ["cpu"])[0] if contexts else None


@contextmanager
def restored_on_error(device: str) -> Iterator[None]:
    """Put autocast and gradient mode back if what runs inside breaks off between two nodes."""
    gradient, cache = torch.is_grad_enabled(), torch.is_autocast_cache_enabled()
    enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    level = _autocast_level()
    try:
        yield
    except BaseException:
        torch.set_grad_enabled(gradient)
        torch.set_autocast_enabled(device, enabled)
        torch.set_autocast_dtype(device, dtype)
        torch.set_autocast_cache_enabled(cache)
        # Without this, the copies of weights in lower precision that autocast keeps until its
        # outermost context is left would be kept for ever, and training would go on with old ones.
        for _ in range(_autocast_level() - level):
            torch.autocast_decrement_nesting()
        if level == 0:
            torch.clear_autocast_cache()
        raise


def _autocast_level() -> int:
    """Return how many autocast contexts the code is in."""
    level: int = torch.autocast_increment_nesting() - 1
    torch.autocast_decrement_nesting()
    return level
