"""Raise a graph of ATen calls to ordinary layers that hold the model's own parameters.

A layer goes to the path of the module that called it, so `state_dict` keys stay the original's.
Every rectifier call becomes a module of its own (a site), even where the original calls one module
twice or calls a function. What cannot be raised stays an ATen call, with the reason noted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload

from shoal.network import layers  # noqa: F401 (fills the operator table)
from shoal.network.exporting import Exported
from shoal.network.modules import Attention, ByMode, SharedPReLU, StochasticDepth
from shoal.network.nodes import (
    bound_arguments,
    is_impure,
    lookup_tensor,
    makes_memory,
    module_path,
    numbered,
    shape_of,
)
from shoal.network.ops import op_of
from shoal.network.placement import Placement
from shoal.network.rectifiers import Rectifier, recognize
from shoal.network.skeleton import Skeleton
from shoal.network.training_only import stochastic_depth

__all__ = ["Opaque", "raise_graph"]

aten = torch.ops.aten

_TENSOR_NAMES = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True)
class Opaque:
    """An operation that stays as captured; surgery does not cross it.

    Attributes:
        name: the node's name in the graph.
        path: the path of the original module that called it.
        op: the operation.
        reason: why it could not be raised.
    """

    name: str
    path: str
    op: str
    reason: str


def raise_graph(
    exported: Exported, skeleton: Skeleton, kept: Mapping[fx.Node, fx.Node]
) -> tuple[fx.Graph, dict[str, tuple[str, str]], tuple[Opaque, ...]]:
    """Build the graph of ordinary modules from an exported graph of out-of-place ATen calls.

    Args:
        exported: the model as a graph of ATen calls, out of place.
        skeleton: receives the layers.
        kept: calls that had to stay in place, each with the maker of the memory it writes into.

    Returns:
        The new graph; each site's kind and the path of its caller, by name; what stayed opaque.
    """
    raiser = _Raiser(exported, skeleton, kept)
    raiser.run()
    opaque = (raiser.opaque(node) for node in raiser.graph.nodes if "opaque" in node.meta)
    return raiser.graph, raiser.sites, tuple(opaque)


class _Raiser:
    def __init__(
        self, exported: Exported, skeleton: Skeleton, kept: Mapping[fx.Node, fx.Node]
    ) -> None:
        self.exported = exported
        self.skeleton = skeleton
        self.kept = kept
        self.graph = fx.Graph()
        self.new: dict[fx.Node, fx.Node] = {}
        self.taken = set(skeleton.originals)
        self.layer_at: dict[str, tuple[nn.Module, tuple[Any, ...]]] = {}
        self.prelus: dict[int, nn.PReLU] = {}
        self.sites: dict[str, tuple[str, str]] = {}
        self.operation: dict[fx.Node, str] = {}
        self.constants: dict[str, Tensor] = {}
        self.placement = Placement(self.graph)

    # ------------------------------------------------------------------ the walk

    def run(self) -> None:
        for node in self.exported.graph.nodes:
            if not _replaces_a_buffer(node):
                self.new[node] = self._raise(node)
        self.graph.eliminate_dead_code(is_impure_node=is_impure)
        self.graph.lint()

    def _raise(self, node: fx.Node) -> fx.Node:
        if node.op == "call_function":
            rectifier = None if node in self.kept else recognize(node, self._constant)
            if rectifier is not None:
                return self._raise_rectifier(node, rectifier)
            op = op_of(node.target)
            if op.layer is not None:
                return self._raise_layer(node)
            if op.dropout is not None:
                return self._raise_dropout(node)
            if node.target is stochastic_depth:
                return self._raise_stochastic_depth(node)
            if _mode_changes(node):
                return self._raise_attention(node) if _is_attention(node) else self._by_mode(node)
            return self._copy_call(node)
        if node.op == "get_attr":
            return self._raise_attribute(node)
        copied = self.graph.node_copy(node, self.new.__getitem__)
        copied.meta = self._meta(node)
        if node.op == "placeholder":
            self.placement.add_input(copied)
        return copied

    def _meta(self, node: fx.Node) -> dict[str, Any]:
        return {"path": module_path(node), **shape_of(node)}

    def _call(self, node: fx.Node, target: str, *inputs: fx.Node) -> fx.Node:
        args: Any = fx.node.map_arg(list(inputs), self.new.__getitem__)
        call = self.graph.call_module(target, tuple(args))
        call.meta = self._meta(node)
        return call

    def _copy_call(self, node: fx.Node) -> fx.Node:
        copied = self.graph.node_copy(node, self.new.__getitem__)
        copied.meta = self._meta(node)
        self.placement.free(copied)
        target = node.target
        known = not isinstance(target, OpOverload) or target.namespace in ("aten", "prim")
        if node in self.kept and not makes_memory(self.kept[node]):
            self._note(copied, "it writes into memory that is read elsewhere")
        elif not known and not op_of(target).name:
            self._note(copied, "a custom operator")
        elif isinstance(target, torch._ops.HigherOrderOperator):
            self._note(copied, "control flow that depends on data")
        return copied

    def _note(self, node: fx.Node, reason: str) -> None:
        node.meta["opaque"] = reason
        self.operation.setdefault(node, str(node.target))

    def opaque(self, node: fx.Node) -> Opaque:
        return Opaque(node.name, node.meta["path"], self.operation[node], str(node.meta["opaque"]))

    # ------------------------------------------------------------------ parameters and constants

    def _raise_attribute(self, node: fx.Node) -> fx.Node:
        path = str(node.target)
        value = lookup_tensor(self.exported.tensors, path)
        body = self.exported.tensors._modules.get(path)
        if isinstance(body, fx.GraphModule):  # a branch of torch.cond, or a loop's body
            self.skeleton.put(path, body)
        elif not self.skeleton.holds(path):
            self.constants[path] = value
            self.skeleton.constant(path, value)
        attribute = self.graph.create_node("get_attr", path)
        attribute.meta = {"path": path.rpartition(".")[0], **shape_of(node)}
        return attribute

    def _constant(self, node: fx.Node) -> Tensor | None:
        """Return the tensor of a `get_attr` node if it is no part of the model's state."""
        return self.constants.get(str(node.target)) if node.op == "get_attr" else None

    # ------------------------------------------------------------------ layers

    def _raise_layer(self, node: fx.Node) -> fx.Node:
        arguments = bound_arguments(node)
        source = arguments.get("input", arguments.get("indices"))
        tensors: dict[str, str] = {}
        for name in _TENSOR_NAMES:
            value = arguments.get(name)
            if isinstance(value, fx.Node):
                if value.op != "get_attr":
                    return self._leave(node, f"its {name} is computed in the forward pass")
                tensors[name] = str(value.target)
                arguments[name] = lookup_tensor(self.exported.tensors, tensors[name])
        if not tensors or not isinstance(source, fx.Node):
            return self._copy_call(node)  # a norm without parameters is an ordinary function
        path = self._owner(node, tensors)
        if path is None:
            return self._leave(node, "its parameters are not the weight and bias of one module")
        arguments["input_dim"] = len(source.meta["val"].shape)
        arguments["in_training"] = node.meta.get("in_training", True)
        make: Any = op_of(node.target).layer
        layer = make(arguments, self.skeleton.originals.get(path))
        if isinstance(layer, str):
            return self._leave(node, layer)
        options = _options(node.target, arguments)
        if path in self.layer_at:
            if self.layer_at[path][1] != options:
                return self._leave(node, "its module calls it with different options elsewhere")
        else:
            self.skeleton.put(path, layer)
            for alias, module in self.skeleton.originals.items():
                if module is self.skeleton.originals[path]:
                    self.layer_at[alias] = (layer, options)
        return self._call(node, path, source)

    def _owner(self, node: fx.Node, tensors: Mapping[str, str]) -> str | None:
        """Return the path of the module that holds all `tensors` under their standard names."""
        candidates = [module_path(node)]
        candidates += [p.rpartition(".")[0] for p in tensors.values()]
        wanted = {name: lookup_tensor(self.exported.tensors, p) for name, p in tensors.items()}
        for path in filter(None, candidates):
            module = self.skeleton.originals.get(path)
            if all(getattr(module, name, None) is v for name, v in wanted.items()):
                return path
        return None

    def _leave(self, node: fx.Node, reason: str) -> fx.Node:
        copied = self._by_mode(node) if _mode_changes(node) else self._copy_call(node)
        self._note(copied, reason)
        return copied

    def _by_mode(self, node: fx.Node) -> fx.Node:
        """Keep a call as it is, but for the one argument that follows the training flag."""
        target: Any = node.target
        index: Any = op_of(target).mode_argument
        values = list(bound_arguments(node).values())
        layer = ByMode(target, index, values[index], node.meta["in_training"])
        name = self._add(module_path(node), layer, layer.name, own=False)
        args: Any = fx.node.map_arg(values, self.new.__getitem__)
        call = self.graph.call_module(name, tuple(args))
        call.meta = self._meta(node)
        self.operation[call] = str(node.target)
        return call

    # ------------------------------------------------------------------ sites

    def _raise_rectifier(self, node: fx.Node, rectifier: Rectifier) -> fx.Node:
        path = module_path(node)
        module, owner_path = rectifier.module, None
        if rectifier.kind == "prelu":
            module, owner_path = self._prelu(rectifier)
            if module is None:
                return self._leave(node, "its slope is computed in the forward pass")
        assert module is not None
        if owner_path is not None:
            name = owner_path
            self.layer_at[name] = (module, ())
        else:
            name = self._add(path, module, rectifier.kind)
        self.sites[name] = rectifier.kind, path
        return self._call(node, name, rectifier.input)

    def _prelu(self, rectifier: Rectifier) -> tuple[nn.Module | None, str | None]:
        """Return the module for a PReLU call; and its path if the owner's own place is the site."""
        assert rectifier.weight is not None
        if rectifier.weight.op != "get_attr":
            return None, None
        target = str(rectifier.weight.target)
        weight = lookup_tensor(self.exported.tensors, target)
        owner = self.prelus.get(id(weight))
        if owner is not None:
            return SharedPReLU(owner), None
        path, _, name = target.rpartition(".")
        if name != "weight" or not path:
            return None, None
        owner = nn.PReLU(weight.numel(), device="meta")
        self.skeleton.put(path, owner)
        self.prelus[id(weight)] = owner
        return owner, path

    def _is_own_module(self, path: str) -> bool:
        """Whether the module at `path` is there for the rectifier alone."""
        module = self.skeleton.originals.get(path)
        if module is None or not path:
            return False
        only_slope = all(isinstance(module, nn.PReLU) for _ in module.parameters())
        return not module._modules and only_slope

    def _add(self, path: str, layer: nn.Module, op: str, *, own: bool = True) -> str:
        """Put a layer at a free path for a call by the module at `path`, and return its path."""
        name = self._free_name(path, op, own=own and self._is_own_module(path))
        self.skeleton.put(name, layer)
        return name

    def _free_name(self, path: str, op: str, *, own: bool) -> str:
        """Return the module's path if it is there for this call, else an unused one beside it."""
        base = path if own else f"{path}.{op}" if path else op
        if own and base not in self.layer_at:
            self.layer_at[base] = (nn.Identity(), ())
            return base
        model = self.skeleton.model
        name = numbered(base, lambda n: n in self.taken or lookup_tensor(model, n) is not None)
        self.taken.add(name)
        return name

    # ------------------------------------------------------------------ what acts in training only

    def _raise_dropout(self, node: fx.Node) -> fx.Node:
        arguments = bound_arguments(node)
        source = arguments["input"]
        if arguments["train"]:
            return self._leave(node, "it draws random numbers in eval mode too")
        if not node.meta.get("in_training", True):
            return self.new[source]  # a dropout that is always off
        make: Any = op_of(node.target).dropout
        layer = make(len(source.meta["val"].shape))(arguments["p"])
        return self._call(node, self._add(module_path(node), layer, "dropout"), source)

    def _raise_stochastic_depth(self, node: fx.Node) -> fx.Node:
        values: tuple[Any, ...] = node.args
        source, path, p, per_sample, rescale = values
        layer = StochasticDepth(p, per_sample=per_sample, rescale=rescale)
        return self._call(node, self._add(path, layer, "stochastic_depth"), source)

    def _raise_attention(self, node: fx.Node) -> fx.Node:
        arguments = bound_arguments(node)
        if arguments["dropout_p"]:
            return self._by_mode(node)
        layer = Attention(node.meta["in_training"])
        name = self._add(module_path(node), layer, "attention")
        call = self._call(node, name, arguments["query"], arguments["key"], arguments["value"])
        rest: Any = {k: arguments[k] for k in ("attn_mask", "is_causal", "scale", "enable_gqa")}
        call.kwargs = fx.node.map_arg(rest, self.new.__getitem__)
        return call


# ---------------------------------------------------------------------- helpers


def _options(target: object, arguments: Mapping[str, Any]) -> tuple[Any, ...]:
    tensors = {*_TENSOR_NAMES, "input", "indices"}
    return (target, *(str(v) for k, v in arguments.items() if k not in tensors))


def _is_attention(node: fx.Node) -> bool:
    return node.target is aten.scaled_dot_product_attention.default


def _mode_changes(node: fx.Node) -> bool:
    """Whether a call is known to act differently in training and in eval mode."""
    mode = op_of(node.target).mode_argument
    if mode is None or "in_training" not in node.meta:
        return False
    now = list(bound_arguments(node).values())[mode]
    return bool(now != node.meta["in_training"])


def _replaces_a_buffer(node: fx.Node) -> bool:
    """Whether the forward pass put a tensor of another shape in the place of a buffer.

    It caches what it computed; the graph computes it, and the old buffer could not take it.
    """
    if node.target is not aten.copy_.default:
        return False
    operands: tuple[Any, ...] = node.args
    buffer, value = operands[:2]
    return buffer.op == "get_attr" and shape_of(buffer).get("shape") != shape_of(value).get("shape")
