"""Which dimension of a tensor holds the neurons."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from shoal.network.ops import op_of

__all__ = ["channel_dim"]

aten = torch.ops.aten

_PLACES = {"second": 1, "last": -1}


def channel_dim(node: fx.Node, root: nn.Module) -> int:
    """Return the non-negative dimension of `node`'s output that holds channels or features.

    The nearest layer upstream decides: convolutions and batch norms put channels second, linear
    layers and layer norms last; transpositions in between are followed. Where nothing decides,
    images (4-D, 5-D) and vectors (2-D) have them second, sequences (3-D) last.
    """
    dims = len(node.meta.get("shape") or (None, None))
    found = _search(node, root, depth=64)
    if found is None:
        found = {2: 1, 3: 2}.get(dims, 1)
    return found % dims


def _search(node: fx.Node, root: nn.Module, depth: int) -> int | None:
    """Return the channel dimension of the output (may be -1), or None if nothing tells."""
    if depth == 0 or node.op not in ("call_module", "call_function"):
        return None
    is_module = node.op == "call_module"
    target: Any = root.get_submodule(str(node.target)) if is_module else node.target
    channels = op_of(target).channels
    if channels in _PLACES:
        return _PLACES[channels]
    if not node.all_input_nodes:
        return None
    source = node.all_input_nodes[0]
    if is_module:
        return _search(source, root, depth - 1)
    if channels == "moved":
        return _through_transposition(node, _search(source, root, depth - 1))
    if channels == "reshaped":
        return _through_reshaping(node, source, _search(source, root, depth - 1))
    if channels == "kept":
        for operand in node.all_input_nodes:
            found = _search(operand, root, depth - 1)
            if found is not None and _same_rank(node, operand):
                return found
    return None


def _same_rank(a: fx.Node, b: fx.Node) -> bool:
    shapes = a.meta.get("shape"), b.meta.get("shape")
    return None in shapes or len(shapes[0]) == len(shapes[1])  # type: ignore[arg-type]


def _through_transposition(node: fx.Node, dim: int | None) -> int | None:
    shape = node.meta.get("shape")
    if dim is None or shape is None:
        return None
    rank = len(shape)
    order = list(range(rank))
    rest: tuple[Any, ...] = node.args[1:]
    if node.target is aten.permute.default:
        order = [d % rank for d in rest[0]]
    else:
        i, j = (d % rank for d in rest[:2])
        order[i], order[j] = order[j], order[i]
    return order.index(dim % rank)


def _through_reshaping(node: fx.Node, source: fx.Node, dim: int | None) -> int | None:
    """Follow a dimension that keeps its place from the front, or from the back."""
    before, after = source.meta.get("shape"), node.meta.get("shape")
    if dim is None or before is None or after is None:
        return None
    dim %= len(before)
    if before[: dim + 1] == after[: dim + 1]:
        return dim
    if before[dim:] == after[len(after) - len(before[dim:]) :]:
        return dim - len(before)
    return None
