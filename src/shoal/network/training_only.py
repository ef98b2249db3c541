"""Find what a model does only while training, so that a captured network does it too.

An export in eval mode loses stochastic depth and the dropout inside attention, and cannot tell a
dropout or a norm that follows the training flag from one that is fixed. An export in train mode
shows all that. The two graphs are aligned call by call, by value numbering; what only the second
one holds is put back into the first.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from shoal.network.flow import bound_arguments, module_path, upstream
from shoal.network.ops import op_of

aten = torch.ops.aten

_DIVISIONS = (aten.div.Tensor, aten.div.Scalar)


def stochastic_depth(x: Tensor, path: str, p: float, per_sample: bool, rescale: bool) -> Tensor:
    """Stand in the graph for stochastic depth until it is raised to a module."""
    return x


@dataclass
class _Extra:
    """A random call, or a copy, of the train-mode graph that the eval-mode graph lacks."""

    source: fx.Node  # what it acts on, in the eval-mode graph
    target: Any  # the operation to insert
    options: tuple[Any, ...]  # the operation's arguments after the source
    origin: fx.Node  # the train-mode node
    over: fx.Node  # what it acts on, in the train-mode graph; may be another extra
    readers: list[fx.Node] = field(default_factory=list)  # who reads it, in the eval-mode graph


def restore_training_only(evaluated: fx.Graph, trained: fx.Graph) -> list[str]:
    """Put what only `trained` does into `evaluated`, both out of place.

    Returns the paths of modules that compute something in training that could not be put back.
    """
    waiting: dict[Any, list[fx.Node]] = defaultdict(list)
    itself = {node: node for node in evaluated.nodes}
    for node in evaluated.nodes:
        waiting[_key(node, itself)].append(node)
    layers = {node: _weights(node) for node in evaluated.nodes if op_of(node.target).weighted}
    same: dict[fx.Node, fx.Node] = {}
    extras: dict[fx.Node, _Extra] = {}
    pairs: list[tuple[fx.Node, fx.Node]] = []
    lost: dict[str, None] = {}
    for node in trained.nodes:
        if node.op == "output":
            (twin,) = evaluated.find_nodes(op="output")
            if _frozen(node.args, same) == _frozen(twin.args, itself):
                pairs.append((twin, node))
            elif not lost:
                lost[_first_unmatched(node, same)] = None
            continue
        known = all(n in same for n in node.all_input_nodes)
        twins = waiting.get(_key(node, same)) if known else None
        extra = None if twins else _extra(node, same)
        if twins:
            same[node] = twins.pop(0)
            layers.pop(same[node], None)
            pairs.append((same[node], node))
            mode = op_of(node.target).mode_argument
            if mode is not None:
                same[node].meta["in_training"] = list(bound_arguments(node).values())[mode]
        elif extra is not None:
            extras[node] = extra
            same[node] = extra.source
        elif op_of(node.target).weighted:  # a layer, not a counter
            layer = _same_layer(node, layers)
            if layer is not None or any(n.op == "get_attr" for n in node.all_input_nodes):
                lost[_first_unmatched(node, same)] = None
            if layer is not None:  # what follows it is not lost
                del layers[layer]
                same[node] = layer
                pairs.append((layer, node))
    _insert(evaluated, extras, pairs)
    return list(lost)


def _first_unmatched(end: fx.Node, same: dict[fx.Node, fx.Node]) -> str:
    """Return the path of the earliest train-mode call that `end` depends on and eval lacks."""
    missing = upstream(end, lambda node: node not in same)
    first = [node for node in missing if all(n in same for n in node.all_input_nodes)]
    return module_path(first[-1] if first else end) or "the model's own forward code"


def _weights(layer: fx.Node) -> frozenset[str]:
    """Return the parameters and buffers that a layer's operands but the first come from."""
    operands = [node for node in layer.args[1:] if isinstance(node, fx.Node)]
    found = {source for node in operands for source in upstream(node, lambda _: True)}
    return frozenset(str(source.target) for source in found if source.op == "get_attr")


def _same_layer(node: fx.Node, layers: dict[fx.Node, frozenset[str]]) -> fx.Node | None:
    """Return the layer of the eval-mode graph that a train-mode call is, of another input."""
    own = _weights(node)
    return next(
        (
            layer
            for layer, weights in layers.items()
            if own & weights
            and layer.target is node.target
            and module_path(layer) == module_path(node)
        ),
        None,
    )


# ---------------------------------------------------------------------- value numbering


def _key(node: fx.Node, same: dict[fx.Node, fx.Node]) -> Any:
    if node.op in ("placeholder", "get_attr"):
        return node.op, str(node.target)
    mode = op_of(node.target).mode_argument
    if mode is not None:  # an argument left at its default is not there at all
        bound = bound_arguments(node)
        # The momentum of a running average differs by mode as well.
        aside = ("momentum", list(bound)[mode])
        kept = [value for name, value in bound.items() if name not in aside]
        return node.op, str(node.target), _frozen(kept, same)
    return node.op, str(node.target), _frozen(node.args, same), _frozen(node.kwargs, same)


def _frozen(value: Any, same: dict[fx.Node, fx.Node]) -> Any:
    if isinstance(value, fx.Node):
        return "node", same.get(value)
    if isinstance(value, (list, tuple)):
        return tuple(_frozen(v, same) for v in value)
    if isinstance(value, dict):
        return tuple((k, _frozen(v, same)) for k, v in sorted(value.items()))
    if isinstance(value, slice):
        return "slice", _frozen((value.start, value.stop, value.step), same)
    return str(value)


# ---------------------------------------------------------------------- what is random


def _extra(node: fx.Node, same: dict[fx.Node, fx.Node]) -> _Extra | None:
    """Recognise a random call, or a copy, of a value which the eval-mode graph has too."""
    if node.target is aten.contiguous.default and not node.kwargs:  # in eval mode it was already
        (copied,) = node.all_input_nodes
        return _Extra(same[copied], node.target, (), node, copied) if copied in same else None
    if op_of(node.target).dropout is not None:
        source, p, train = node.args
        if isinstance(source, fx.Node) and source in same and train is True:
            return _Extra(same[source], node.target, (p, False), node, source)
        return None
    if node.target is not aten.mul.Tensor:
        return None
    for x, noise in (node.args[:2], node.args[1::-1]):
        if not isinstance(x, fx.Node) or not isinstance(noise, fx.Node):
            continue
        found = _noise(noise)
        if found is None:
            continue
        keep, rescale = found
        if x not in same and x.target in _DIVISIONS and x.args[1] == keep:
            x, rescale = x.args[0], True
        if isinstance(x, fx.Node) and x in same:
            value = noise.meta["val"]
            per_sample = not (isinstance(value.shape[0], int) and value.shape[0] == 1)
            options = (module_path(node), 1.0 - keep, per_sample, rescale)
            return _Extra(same[x], stochastic_depth, options, node, x)
    return None


def _noise(node: fx.Node) -> tuple[float, bool] | None:
    """Return (keep, rescaled) if a node is noise that is 0 or 1 (or 1 / keep) with P(1) = keep."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or value.dim() == 0:
        return None
    rescale = node.target in _DIVISIONS
    inner: Any = node.args[0] if rescale else node
    if not isinstance(inner, fx.Node):
        return None
    if inner.target in (aten.bernoulli_.float, aten.bernoulli.p):
        keep = bound_arguments(inner)["p"]
        if isinstance(keep, float) and (not rescale or node.args[1] == keep):
            return keep, rescale
    elif inner.target is aten.floor.default and not rescale:
        shifted: Any = inner.args[0]
        if shifted.target is aten.add.Tensor:
            drawn, keep = shifted.args
            if "aten.rand." in str(getattr(drawn, "target", "")) and isinstance(keep, float):
                return keep, False
    return None


# ---------------------------------------------------------------------- putting it back


def _insert(
    graph: fx.Graph, extras: dict[fx.Node, _Extra], pairs: list[tuple[fx.Node, fx.Node]]
) -> None:
    """Insert each extra before its first reader, in the order in which training draws."""
    for twin, node in pairs:
        for origin in node.all_input_nodes:
            if origin in extras:
                extras[origin].readers.append(twin)
    for extra in reversed(list(extras.values())):
        if extra.over in extras:
            extras[extra.over].readers.extend(extra.readers)
    position = {node: i for i, node in enumerate(graph.nodes)}
    new: dict[fx.Node, fx.Node] = {}
    for extra in extras.values():
        if not extra.readers:
            continue
        with graph.inserting_before(min(extra.readers, key=position.__getitem__)):
            source = new.get(extra.over, extra.source)
            node = graph.call_function(extra.target, (source, *extra.options))
        node.meta = {**extra.source.meta, "in_training": True}
        if "nn_module_stack" in extra.origin.meta:
            node.meta["nn_module_stack"] = extra.origin.meta["nn_module_stack"]
        new[extra.origin] = node
    for twin, node in pairs:
        twin.args = _redirected(twin.args, node.args, new)
        twin.kwargs = _redirected(twin.kwargs, node.kwargs, new)


def _redirected(value: Any, example: Any, new: dict[fx.Node, fx.Node]) -> Any:
    """Return `value` with those nodes replaced that stand where `example` has an extra."""
    if isinstance(example, fx.Node):
        return new.get(example, value)
    if isinstance(value, dict):
        return {k: _redirected(v, example.get(k), new) for k, v in value.items()}
    if isinstance(value, (list, tuple)) and isinstance(example, (list, tuple)):
        padded = [*example, *[None] * (len(value) - len(example))]
        return type(value)(_redirected(v, e, new) for v, e in zip(value, padded, strict=False))
    return value
