"""Turn in-place operations of an exported graph into their out-of-place twins.

An observer must see a rectifier's input as it was, and a removed branch must not leave a mutation
behind, so a captured graph has no `relu_` or `add_` where that can be avoided. Values do not
change: where another alias of the mutated tensor is read later, the operation stays in place.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx
from torch._ops import OpOverload, OpOverloadPacket

from shoal.network.aten import ATEN
from shoal.network.ops import op_of

__all__ = ["make_out_of_place"]

aten = torch.ops.aten


def _twins() -> dict[OpOverload, OpOverload]:
    twins = {}
    for base in sorted(name for name in ATEN if op_of(f"aten.{name}").in_place):
        packet = getattr(aten, base + "_", None)
        if packet is None:
            continue
        by_types = {_types(op): op for op in _overloads(getattr(aten, base))}
        twins.update(
            {op: by_types[_types(op)] for op in _overloads(packet) if _types(op) in by_types}
        )
    return twins


def _overloads(packet: OpOverloadPacket) -> list[OpOverload]:
    return [getattr(packet, name) for name in packet.overloads() if not name.endswith("out")]


def _types(op: OpOverload) -> tuple[str, ...]:
    """Return the types of an operation's arguments; overloads differ in them, not in names."""
    return tuple(str(argument.type) for argument in op._schema.arguments)


def _aliased_input(node: fx.Node) -> fx.Node | None:
    """Return the argument whose memory the node's output may share, if there is one."""
    if node.op != "call_function":
        return None
    target = node.target
    if not isinstance(target, OpOverload):
        first = node.args[0] if node.args else None
        return first if isinstance(first, fx.Node) else None  # getitem of a list of views
    shared = {s for r in target._schema.returns if r.alias_info for s in r.alias_info.before_set}
    silent = op_of(target).dropout is not None  # in eval mode it hands back its input itself
    for arg, value in zip(target._schema.arguments, node.args, strict=False):
        aliases = arg.alias_info is not None and bool(shared & arg.alias_info.before_set)
        if (aliases or silent) and isinstance(value, fx.Node):
            return value
    return None


def make_out_of_place(graph: fx.Graph) -> dict[fx.Node, fx.Node]:
    """Replace in-place operations of `graph`; return those that had to stay as they were.

    Args:
        graph: a graph of ATen calls as `torch.export` makes it; it is changed in place.

    Returns:
        For each call that stays in place, the node that made the memory it writes into.
    """
    twins = _twins()
    root: dict[fx.Node, fx.Node] = {}  # the node whose memory a node's output lives in
    position = {node: i for i, node in enumerate(graph.nodes)}
    kept: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        source = _aliased_input(node)
        root[node] = node if source is None else root[source]
        if not isinstance(node.target, OpOverload) or not node.target._schema.is_mutable:
            continue
        written = node.args[0] if node.args else None
        if node.target not in twins or not isinstance(written, fx.Node):
            kept[node] = root[node]
            continue
        others = [n for n in root if root[n] is root[written] and n not in (written, node)]
        read_later = any(position[u] > position[node] for n in others for u in n.users)
        if read_later or root[written].op == "get_attr" or _promotes(node, written):
            kept[node] = root[node]
            continue
        node.target = twins[node.target]
        again = _aliased_input(node)  # detach shares memory also out of place
        root[node] = node if again is None else root[again]
        for user in list(written.users):
            if position[user] > position[node]:
                user.replace_input_with(written, node)
    return kept


def _promotes(node: fx.Node, written: fx.Node) -> bool:
    """Whether the out-of-place twin would return another type or shape than the written tensor."""
    target = written.meta.get("val")
    for operand in node.all_input_nodes:
        value = operand.meta.get("val")
        if not isinstance(value, Tensor) or not isinstance(target, Tensor):
            continue
        mask = value.dtype is torch.bool  # promotes nothing
        if not mask and value.dim() > 0 and value.dtype is not target.dtype:
            return True
    return False
