"""Turn in-place operations of an exported graph into their out-of-place twins.

An observer must see a rectifier's input as it was, and a removed branch must not leave a mutation
behind, so a captured graph has no `relu_` or `add_` where that can be avoided. Values do not
change: where another alias of the mutated tensor is read later, the operation stays in place.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from shoal.network.ops import op_of

__all__ = ["make_out_of_place"]

aten = torch.ops.aten


def _twin(op: OpOverload) -> OpOverload | None:
    """Return the operation that computes the same out of place, where the table allows it."""
    space, name = str(op).split(".")[:2]
    base = name.removesuffix("_")
    if space != "aten" or base == name or not op_of(f"aten.{base}").in_place:
        return None
    packet = getattr(aten, base)
    twins = (getattr(packet, key) for key in packet.overloads() if not key.endswith("out"))
    return next((twin for twin in twins if _types(twin) == _types(op)), None)


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
    root: dict[fx.Node, fx.Node] = {}  # the node whose memory a node's output lives in
    position = {node: i for i, node in enumerate(graph.nodes)}
    kept: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        source = _aliased_input(node)
        root[node] = node if source is None else root[source]
        if not isinstance(node.target, OpOverload) or not node.target._schema.is_mutable:
            continue
        written = node.args[0] if node.args else None
        twin = _twin(node.target)
        if twin is None or not isinstance(written, fx.Node):
            kept[node] = root[node]
            continue
        others = [n for n in root if root[n] is root[written] and n not in (written, node)]
        read_later = any(position[u] > position[node] for n in others for u in n.users)
        if read_later or root[written].op == "get_attr" or _promotes(node, written):
            kept[node] = root[node]
            continue
        node.target = twin
        again = _aliased_input(node)  # detach shares memory also out of place
        root[node] = node if again is None else root[again]
        for user in list(written.users):
            if position[user] > position[node]:
                user.replace_input_with(written, node)
    return kept


def _promotes(node: fx.Node, written: fx.Node) -> bool:
    """Whether the out-of-place twin would return another type or shape than the written tensor."""
    target = written.meta.get("val")
    if not isinstance(target, Tensor):
        return False
    values = (operand.meta.get("val") for operand in node.all_input_nodes)
    others = (v.dtype for v in values if isinstance(v, Tensor) and v.dim() > 0)
    return not {*others} <= {target.dtype, torch.bool}  # a mask promotes nothing
