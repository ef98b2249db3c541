"""Raise a graph of ATen calls to ordinary layers that hold the model's own parameters.

A layer goes to the path of the module that called it, so `state_dict` keys stay the original's.
Every rectifier call becomes a module of its own (a site), even where the original calls one module
twice or calls a function. What cannot be raised stays an ATen call, with the reason noted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload

from shoal.network.calls import Rectifier, recognize
from shoal.network.contexts import CONTEXT_CALLS
from shoal.network.exporting import Exported
from shoal.network.flow import bound_arguments, makes_memory, module_path, shape_of, writes
from shoal.network.modules import Attention, ByMode, SharedPReLU, StochasticDepth
from shoal.network.normalize import follow_inputs
from shoal.network.ops import op_of
from shoal.network.paths import Skeleton, container_at, is_taken, lookup_tensor, numbered
from shoal.network.training_only import stochastic_depth
from shoal.network.written import Written, data_of

aten = torch.ops.aten

TENSOR_NAMES = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True)
class Opaque:
    """An operation that stays as captured; surgery does not cross it."""

    name: str  # the node's, in the graph
    path: str  # of the original module that called it
    op: str
    reason: str  # why it could not be raised


def raise_graph(
    exported: Exported, skeleton: Skeleton, kept: Mapping[fx.Node, fx.Node]
) -> tuple[fx.Graph, dict[str, tuple[str, str]], tuple[Opaque, ...], list[str]]:
    """Build the graph of ordinary modules, which `skeleton` receives, from out-of-place ATen calls.

    `kept` is what `make_out_of_place` returned. Returns the new graph, each site's kind and path,
    what stayed opaque, and the names of activations that are no rectifiers.
    """
    raiser = _Raiser(exported, skeleton, kept)
    for node in exported.graph.nodes:
        if not _replaces_a_buffer(node):
            raiser.new[node] = raiser.raised(node)
    follow_inputs(raiser.graph)
    raiser.graph.eliminate_dead_code(
        lambda n: n.op in ("placeholder", "output") or n.target in CONTEXT_CALLS or writes(n)
    )
    raiser.graph.lint()
    opaque = (raiser.opaque.get(node) for node in raiser.graph.nodes)
    others = [_shown(inside) for inside in reversed(raiser.written.others.values())]
    return raiser.graph, raiser.sites, tuple(filter(None, opaque)), others


class _Raiser:
    def __init__(
        self, exported: Exported, skeleton: Skeleton, kept: Mapping[fx.Node, fx.Node]
    ) -> None:
        self.exported = exported
        self.tensors = exported.tensors
        self.skeleton = skeleton
        self.kept = kept
        self.graph = fx.Graph()
        self.new: dict[fx.Node, fx.Node] = {}  # by the exported node
        self.taken = set(skeleton.originals)
        self.options_at: dict[str, tuple[Any, ...]] = {}  # of the call whose layer is at a path
        self.prelus: dict[int, nn.PReLU] = {}  # by the id of the weight
        self.sites: dict[str, tuple[str, str]] = {}
        self.opaque: dict[fx.Node, Opaque] = {}
        self.constants = self._constants()
        self.data = data_of(exported.graph)
        self.written = Written(exported.graph, self.constants, self._is_rectifier, kept, self.data)

    def raised(self, node: fx.Node) -> fx.Node:
        """Return the node of the new graph that stands for one of the exported graph."""
        if node.op == "get_attr":
            return self._raise_attribute(node)
        if node.op != "call_function":
            return self._copy(node)
        rectifier = self._rectifier(node)
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
            attention = node.target is aten.scaled_dot_product_attention.default
            return self._raise_attention(node) if attention else self._by_mode(node)
        return self._copy_call(node)

    def _copy(self, node: fx.Node) -> fx.Node:
        copied = self.graph.node_copy(node, self.new.__getitem__)
        copied.meta = {"path": module_path(node), **shape_of(node)}
        return copied

    def _call(self, node: fx.Node, target: str, *args: Any, **kwargs: Any) -> fx.Node:
        """Call the module at `target` for `node`; its arguments may hold exported nodes."""
        given = fx.node.map_arg((args, kwargs), self.new.__getitem__)
        call = self.graph.call_module(target, *given)
        call.meta = {"path": module_path(node), **shape_of(node)}
        return call

    def _copy_call(self, node: fx.Node) -> fx.Node:
        copied, target = self._copy(node), node.target
        known = not isinstance(target, OpOverload) or target.namespace in ("aten", "prim")
        if node in self.kept and not makes_memory(self.kept[node]):
            self._note(copied, node, "it writes into memory that is read elsewhere")
        elif not known and not op_of(target).name:
            self._note(copied, node, "a custom operator")
        elif isinstance(target, torch._ops.HigherOrderOperator):
            self._note(copied, node, "control flow that depends on data")
        return copied

    def _note(self, new: fx.Node, node: fx.Node, reason: str) -> None:
        new.meta["opaque"] = reason
        self.opaque[new] = Opaque(new.name, new.meta["path"], str(node.target), reason)

    # ------------------------------------------------------------------ parameters and constants

    def _raise_attribute(self, node: fx.Node) -> fx.Node:
        path = str(node.target)
        body = self.tensors._modules.get(path)
        if isinstance(body, fx.GraphModule):  # a branch of torch.cond, or a loop's body
            self.skeleton.put(path, body)
        elif path in self.constants:
            parent, _, name = path.rpartition(".")
            container = container_at(self.skeleton.root, parent)
            container._buffers[name] = self.constants[path]
            container._non_persistent_buffers_set.add(name)  # a constant is not saved
        attribute = self.graph.create_node("get_attr", path)
        attribute.meta = {"path": path.rpartition(".")[0], **shape_of(node)}
        return attribute

    def _constants(self) -> dict[str, Tensor]:
        """Return the tensors that are no part of the model's state, by their path."""
        named = {str(node.target) for node in self.exported.graph.nodes if node.op == "get_attr"}
        found = {path: lookup_tensor(self.tensors, path) for path in named}
        return {
            path: value
            for path, value in found.items()
            if value is not None and not is_taken(self.skeleton.root, path)
        }

    # ------------------------------------------------------------------ layers

    def _raise_layer(self, node: fx.Node) -> fx.Node:
        arguments = bound_arguments(node)
        source = arguments.get("input", arguments.get("indices"))
        tensors: dict[str, str] = {}
        for name in TENSOR_NAMES:
            value = arguments.get(name)
            if isinstance(value, fx.Node):
                if value.op != "get_attr":
                    return self._leave(node, f"its {name} is computed in the forward pass")
                tensors[name] = str(value.target)
                arguments[name] = lookup_tensor(self.tensors, tensors[name])
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
        aside = {*TENSOR_NAMES, "input", "indices"}
        options = (node.target, *(str(v) for k, v in arguments.items() if k not in aside))
        if self.options_at.get(path, options) != options:
            return self._leave(node, "its module calls it with different options elsewhere")
        if path not in self.options_at:
            self.skeleton.put(path, layer)
            self.options_at.update(dict.fromkeys(self.skeleton.aliases[path], options))
        return self._call(node, path, source)

    def _owner(self, node: fx.Node, tensors: Mapping[str, str]) -> str | None:
        """Return the path of the module that holds `tensors`, and no others, by standard names."""
        candidates = module_path(node), *(p.rpartition(".")[0] for p in tensors.values())
        wanted = {name: lookup_tensor(self.tensors, p) for name, p in tensors.items()}
        for path in filter(None, candidates):
            module = self.skeleton.originals.get(path)
            held = {name: getattr(module, name, None) for name in TENSOR_NAMES}
            held = {name: v for name, v in held.items() if isinstance(v, Tensor)}
            if held.keys() == wanted.keys() and all(held[name] is v for name, v in wanted.items()):
                return path
        return None

    def _leave(self, node: fx.Node, reason: str) -> fx.Node:
        copied = self._by_mode(node) if _mode_changes(node) else self._copy_call(node)
        self._note(copied, node, reason)
        return copied

    def _by_mode(self, node: fx.Node) -> fx.Node:
        """Keep a call as it is, but for the one argument that follows the training flag."""
        target: Any = node.target
        index: Any = op_of(target).mode_argument
        values = list(bound_arguments(node).values())
        layer = ByMode(target, index, values[index], node.meta["in_training"])
        name = self._add(module_path(node), layer, layer.name, own=False)
        return self._call(node, name, *values)

    # ------------------------------------------------------------------ sites

    def _is_rectifier(self, node: fx.Node) -> bool:
        """Whether a call rectifies the input's data; one of weights is no activation."""
        usable = node in self.data and node not in self.kept
        return usable and recognize(node, self.constants) is not None

    def _rectifier(self, node: fx.Node) -> Rectifier | None:
        """Return the rectifier that a call is, or ends."""
        if node in self.written.at:
            return Rectifier(*self.written.at[node])
        if node in self.written.inside or not self._is_rectifier(node):
            return None
        return recognize(node, self.constants)

    def _raise_rectifier(self, node: fx.Node, rectifier: Rectifier) -> fx.Node:
        path, module, name = module_path(node), rectifier.module, None
        if rectifier.weight is not None:
            module, name = self._prelu(rectifier.weight)
        if module is None:
            held = rectifier.weight is not None and rectifier.weight.op == "get_attr"
            reason = (
                "is not the weight of an nn.PReLU" if held else "is computed in the forward pass"
            )
            return self._leave(node, f"its slope {reason}")
        if name is None:
            name = self._add(path, module, rectifier.kind)
        self.sites[name] = rectifier.kind, path
        return self._call(node, name, rectifier.input)

    def _prelu(self, slope: fx.Node) -> tuple[nn.Module | None, str | None]:
        """Return the module for a PReLU call; and its path if the owner's own place is the site."""
        path, _, name = str(slope.target).rpartition(".")
        if slope.op != "get_attr":
            return None, None
        weight = lookup_tensor(self.tensors, str(slope.target))
        owner = self.prelus.get(id(weight))
        if owner is not None:
            return SharedPReLU(owner), None
        if name != "weight" or not path:
            return None, None
        owner = self.prelus[id(weight)] = nn.PReLU(weight.numel(), device="meta")
        self.skeleton.put(path, owner)
        self.options_at[path] = ()
        return owner, path

    def _add(self, path: str, layer: nn.Module, op: str, *, own: bool = True) -> str:
        """Put a layer at a free path, the calling module's `own` if it is there for this alone."""
        module = self.skeleton.originals.get(path) if own and path else None
        own = isinstance(module, nn.PReLU) or (module is not None and self._is_bare(path, module))
        name = path if own else f"{path}.{op}".lstrip(".")
        if own and name not in self.options_at:
            self.options_at.update(dict.fromkeys(self.skeleton.aliases.get(name, [name]), ()))
        else:
            model = self.skeleton.model
            root = self.skeleton.root  # where a tied module has what was put below another path
            name = numbered(
                name,
                lambda n: (
                    n in self.taken or is_taken(root, n) or lookup_tensor(model, n) is not None
                ),
            )
            self.taken.add(name)
        self.skeleton.put(name, layer)
        return name

    def _is_bare(self, path: str, module: nn.Module) -> bool:
        """Whether a module holds nothing: no modules, no tensors, no constants of its code."""
        held = any(True for _ in (*module.children(), *module.parameters(), *module.buffers()))
        return not held and not any(name.startswith(f"{path}.") for name in self.constants)

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
        source, path, p, per_sample, rescale = cast(tuple[Any, ...], node.args)
        layer = StochasticDepth(p, per_sample=per_sample, rescale=rescale)
        return self._call(node, self._add(path, layer, "stochastic_depth"), source)

    def _raise_attention(self, node: fx.Node) -> fx.Node:
        arguments = bound_arguments(node)
        arguments.pop("dropout_p")  # 0 in eval mode; else the model is random, and refused
        layer = Attention(node.meta["in_training"])
        tensors = [arguments.pop(key) for key in ("query", "key", "value")]
        name = self._add(module_path(node), layer, "attention")
        return self._call(node, name, *tensors, **arguments)


# ---------------------------------------------------------------------- helpers


def _shown(calls: list[fx.Node]) -> str:
    """Return what calls that follow each other do, and in which layer."""
    path = module_path(calls[-1])
    names = [str(getattr(node.target, "_opname", node.target)) for node in calls]
    return " → ".join(names) + (f" in '{path}'" if path else "")


def _mode_changes(node: fx.Node) -> bool:
    """Whether a call is known to act differently in training and in eval mode."""
    mode = op_of(node.target).mode_argument
    if mode is None or "in_training" not in node.meta:
        return False
    now = list(bound_arguments(node).values())[mode]
    return bool(now != node.meta["in_training"])


def _replaces_a_buffer(node: fx.Node) -> bool:
    """Whether the forward pass cached a tensor of another shape than the buffer could take."""
    if node.target is not aten.copy_.default:
        return False
    buffer, value = cast(tuple[Any, ...], node.args)[:2]
    return buffer.op == "get_attr" and shape_of(buffer).get("shape") != shape_of(value).get("shape")
