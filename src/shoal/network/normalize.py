"""Rewrite calls that an export wrote down as they were on the example: in place, here, of a type.

An observer must see a rectifier's input as it was, and a removed branch must not leave a mutation
behind, so a captured graph has no `relu_` or `add_` where that can be avoided. And tensors that the
forward pass makes must follow the network to another device or type.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from shoal.network.ops import op_of

aten = torch.ops.aten


def make_out_of_place(graph: fx.Graph) -> dict[fx.Node, fx.Node]:
    """Replace in-place ATen calls of `graph` where no value changes by that.

    Returns those that had to stay, each with the node that made the memory it writes into.
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
        if twin is None or not isinstance(written, fx.Node) or _promotes(node, written):
            kept[node] = root[node]
            continue
        others = [n for n in root if root[n] is root[written] and n not in (written, node)]
        read_later = any(position[u] > position[node] for n in others for u in n.users)
        if read_later or root[written].op == "get_attr":
            kept[node] = root[node]
            continue
        node.target = twin
        again = _aliased_input(node)  # detach shares memory also out of place
        root[node] = node if again is None else root[again]
        for user in list(written.users):
            if position[user] > position[node]:
                user.replace_input_with(written, node)
    return kept


def _twin(op: OpOverload) -> OpOverload | None:
    """Return the operation that computes the same out of place, where the table allows it."""
    space, name = str(op).split(".")[:2]
    base = name.removesuffix("_")
    if space != "aten" or base == name or not op_of(f"aten.{base}").in_place:
        return None

    def types(op: OpOverload) -> list[str]:  # overloads differ in them, not in names
        return [str(argument.type) for argument in op._schema.arguments]

    packet = getattr(aten, base)
    twins = (getattr(packet, key) for key in packet.overloads() if not key.endswith("out"))
    return next((twin for twin in twins if types(twin) == types(op)), None)


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


def _promotes(node: fx.Node, written: fx.Node) -> bool:
    """Whether the out-of-place twin would return another type or shape than the written tensor."""
    target = written.meta.get("val")
    if not isinstance(target, Tensor):
        return False
    values = (operand.meta.get("val") for operand in node.all_input_nodes)
    others = (v.dtype for v in values if isinstance(v, Tensor) and v.dim() > 0)
    return not {*others} <= {target.dtype, torch.bool}  # a mask promotes nothing


def follow_inputs(graph: fx.Graph) -> None:
    """Let calls read a device and a floating-point type off the inputs where they name theirs."""
    inputs = [node for node in graph.nodes if node.op == "placeholder" and "shape" in node.meta]
    floating = next((node for node in inputs if node.meta["dtype"].is_floating_point), None)
    read: dict[str, fx.Node] = {}

    def attribute(source: fx.Node, name: str) -> fx.Node:
        if name not in read:
            with graph.inserting_after(source):
                read[name] = graph.call_function(getattr, (source, name))
            read[name].meta = {"path": ""}
        return read[name]

    def followed(value: Any) -> Any:
        if isinstance(value, torch.device):
            return attribute(inputs[0], "device")
        if floating is not None and value is floating.meta["dtype"]:
            return attribute(floating, "dtype")
        return value

    calls = [node for node in graph.nodes if isinstance(node.target, OpOverload)]
    for node in calls if inputs else ():
        op, kwargs = op_of(node.target), dict(node.kwargs)
        source = node.args[0] if node.args else None
        takes_tensor = isinstance(source, fx.Node) and "shape" in source.meta
        if "device" in kwargs or (takes_tensor and op.shape_only):
            kwargs.pop("pin_memory", None)
        if takes_tensor and op.shape_only:  # it takes the rest over from the tensor by itself
            kwargs.pop("device", None)
            if kwargs.get("dtype") is node.all_input_nodes[0].meta["dtype"]:
                del kwargs["dtype"]
            node.kwargs = kwargs
        elif op.converts or not takes_tensor:  # a softmax in float32 means the type it names
            node.args = tuple(map(followed, node.args))
            node.kwargs = {key: followed(value) for key, value in kwargs.items()}
