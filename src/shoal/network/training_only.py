"""Find what a model does only while training, so that a captured network does it too.

An export in eval mode loses stochastic depth and the dropout inside attention. An export in train
mode shows them. The two graphs are aligned call by call, by value numbering, and what only the
second one holds is put back into the first.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

__all__ = ["restore_training_only", "stochastic_depth"]

aten = torch.ops.aten

# Arguments that may differ between the two exports of one call, by operation.
_MODE_ARGUMENTS: dict[object, tuple[int, ...]] = {
    aten.batch_norm.default: (5, 6),
    aten.dropout.default: (2,),
    aten.feature_dropout.default: (2,),
    aten.alpha_dropout.default: (2,),
    aten.feature_alpha_dropout.default: (2,),
    aten.rrelu.default: (3,),
    aten.scaled_dot_product_attention.default: (4,),
    aten.instance_norm.default: (),
}


def stochastic_depth(x: Tensor, path: str, p: float, per_sample: bool, rescale: bool) -> Tensor:
    """Stand in the graph for stochastic depth until it is raised to a module."""
    return x


@dataclass
class _Drop:
    """A multiplication by random noise in the train-mode graph."""

    source: fx.Node  # what is multiplied, in the eval-mode graph
    path: str
    p: float
    per_sample: bool
    rescale: bool
    readers: list[tuple[fx.Node, int]] = field(default_factory=list)


def restore_training_only(evaluated: fx.Graph, trained: fx.Graph) -> list[str]:
    """Put what only `trained` does into `evaluated`.

    Args:
        evaluated: the out-of-place graph exported in eval mode; it is changed in place.
        trained: the out-of-place graph exported in train mode.

    Returns:
        The paths of modules that compute something in training that could not be put back.
    """
    waiting: dict[Any, list[fx.Node]] = defaultdict(list)
    for node in evaluated.nodes:
        waiting[_key(node, {n: n for n in node.all_input_nodes})].append(node)
    same: dict[fx.Node, fx.Node] = {}
    drops: dict[fx.Node, _Drop] = {}
    lost: dict[str, None] = {}
    for node in trained.nodes:
        if node.op == "output":
            continue
        drop = _noise_product(node, same)
        if drop is not None:
            drops[node] = drop
            same[node] = drop.source
            continue
        known = all(n in same for n in node.all_input_nodes)
        twins = waiting.get(_key(node, same)) if known else None
        if twins:
            twin = same[node] = twins.pop(0)
            _note_readers(node, twin, drops)
            _note_dropout(node, twin)
        elif _has_parameters(node):
            lost[_path(node)] = None
    for drop in drops.values():
        _insert(evaluated, drop)
    return list(lost)


def _path(node: fx.Node) -> str:
    entries = list((node.meta.get("nn_module_stack") or {}).values())
    return entries[-1][0] if entries else ""


def _has_parameters(node: fx.Node) -> bool:
    """Whether a call reads parameters: what is lost then is a layer, not a counter."""
    target = str(node.target)
    computes = any(op in target for op in ("conv", "linear", "addmm", "matmul"))
    return computes and any(n.op == "get_attr" for n in node.all_input_nodes)


def _key(node: fx.Node, same: dict[fx.Node, fx.Node]) -> Any:
    if node.op in ("placeholder", "get_attr"):
        return node.op, str(node.target)
    hidden = _MODE_ARGUMENTS.get(node.target, ())
    args = [None if i in hidden else a for i, a in enumerate(node.args)]
    kwargs = {k: v for k, v in node.kwargs.items() if k != "dropout_p"}
    if hidden and len(args) > hidden[0]:  # an argument left at its default is not there at all
        args = [a for i, a in enumerate(args) if i not in hidden]
    return node.op, str(node.target), _frozen(args, same), _frozen(kwargs, same)


def _frozen(value: Any, same: dict[fx.Node, fx.Node]) -> Any:
    if isinstance(value, fx.Node):
        return "node", same[value]
    if isinstance(value, (list, tuple)):
        return tuple(_frozen(v, same) for v in value)
    if isinstance(value, dict):
        return tuple((k, _frozen(v, same)) for k, v in sorted(value.items()))
    if isinstance(value, slice):
        return "slice", _frozen((value.start, value.stop, value.step), same)
    return str(value)


def _noise_product(node: fx.Node, same: dict[fx.Node, fx.Node]) -> _Drop | None:
    """Recognise x · noise, with noise = bernoulli(keep) and perhaps divided by keep."""
    if node.target is not aten.mul.Tensor:
        return None
    for x, noise in (node.args[:2], node.args[1::-1]):
        if not isinstance(x, fx.Node) or not isinstance(noise, fx.Node) or x not in same:
            continue
        rescale = noise.target in (aten.div.Tensor, aten.div.Scalar, aten.div_.Tensor)
        inner = noise.args[0] if rescale else noise
        if not isinstance(inner, fx.Node) or "bernoulli" not in str(inner.target):
            continue
        keep = inner.args[1] if len(inner.args) > 1 else None
        value = noise.meta.get("val")
        if not isinstance(keep, float) or not isinstance(value, Tensor):
            continue
        per_sample = not (isinstance(value.shape[0], int) and value.shape[0] == 1)
        return _Drop(same[x], _path(node), 1.0 - keep, per_sample, rescale)
    return None


def _note_readers(node: fx.Node, twin: fx.Node, drops: dict[fx.Node, _Drop]) -> None:
    for i, arg in enumerate(node.args):
        if isinstance(arg, fx.Node) and arg in drops:
            drops[arg].readers.append((twin, i))


def _note_dropout(node: fx.Node, twin: fx.Node) -> None:
    if node.target is not aten.scaled_dot_product_attention.default:
        return
    p = node.args[4] if len(node.args) > 4 else node.kwargs.get("dropout_p", 0.0)
    if isinstance(p, float) and p > 0:
        twin.meta["dropout"] = p


def _insert(graph: fx.Graph, drop: _Drop) -> None:
    if not drop.readers:
        return
    first = min((reader for reader, _ in drop.readers), key=list(graph.nodes).index)
    with graph.inserting_before(first):
        node = graph.call_function(
            stochastic_depth,
            (drop.source, drop.path, drop.p, drop.per_sample, drop.rescale),
        )
    node.meta = dict(drop.source.meta)
    for reader, i in drop.readers:
        args = list(reader.args)
        args[i] = node
        reader.args = tuple(args)
