"""How far each tensor of a stretch sees into the tensor it starts from: kernel, stride, padding.

Composing layers composes what one output position reads: with (K, S, P) so far, a convolution of
kernel k, stride s, padding p and dilation d makes it (K + S·d·(k − 1), S·s, P + S·p), per axis.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from shoal.network.nodes import bound_arguments
from shoal.network.ops import op_of

__all__ = ["Reach", "is_passed", "reaches"]

aten = torch.ops.aten

Pair = tuple[int, int]


@dataclass(frozen=True)
class Reach:
    """What one position of a tensor reads of the start, per axis (height, width).

    Attributes:
        kernel: the extent of what it reads.
        stride: how far apart neighbouring positions read.
        padding: how far before the first position of the start the first one begins to read.
    """

    kernel: Pair = (1, 1)
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)

    def then(self, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]) -> Reach:
        """Return the reach after a layer with this (dilated) kernel, stride and padding."""
        axes = range(2)
        return Reach(
            _pair(self.kernel[i] + self.stride[i] * (kernel[i] - 1) for i in axes),
            _pair(self.stride[i] * stride[i] for i in axes),
            _pair(self.padding[i] + self.stride[i] * padding[i] for i in axes),
        )


class _Unknown(Exception):
    """A node does something that has no reach."""


def is_passed(node: fx.Node, root: nn.Module, sites: Collection[str]) -> bool:
    """Whether a node acts on each entry alone and may be left behind a stretch's end."""
    if node.op != "call_module":
        return False
    return node.target in sites or op_of(root.get_submodule(str(node.target))).pointwise


def reaches(
    start: fx.Node,
    inside: Sequence[fx.Node],
    root: nn.Module,
    sites: Collection[str],
    kind: type[nn.Module],
) -> dict[fx.Node, Reach | None] | None:
    """Return the reach of each node inside a stretch, or None if one is not understood.

    Args:
        start: the tensor the stretch starts from.
        inside: its nodes in the order of the graph.
        root: the network they belong to.
        sites: the names of its sites.
        kind: which layers with weights may occur, `nn.Conv2d` or `nn.Linear`.

    Returns:
        By node; None for what reads the whole image, as the gate of a squeeze-and-excitation.
    """
    found: dict[fx.Node, Reach | None] = {start: Reach()}
    try:
        for node in inside:
            found[node] = _reach(node, found, root, sites, kind)
    except _Unknown:
        return None
    return found


def _reach(
    node: fx.Node,
    known: dict[fx.Node, Reach | None],
    root: nn.Module,
    sites: Collection[str],
    kind: type[nn.Module],
) -> Reach | None:
    sources = [known[n] for n in node.all_input_nodes if n in known]
    if not sources or node.meta.get("opaque"):
        raise _Unknown
    if node.op == "call_module":
        module = root.get_submodule(str(node.target))
        if isinstance(module, nn.Conv2d) and kind is nn.Conv2d:
            return _through_conv(sources[0], module)
        if isinstance(module, kind) or is_passed(node, root, sites):
            return sources[0]
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            return sources[0]
        raise _Unknown
    if node.op != "call_function":
        raise _Unknown
    if op_of(node.target).pointwise:
        return _joined(sources)
    if kind is nn.Conv2d:
        return _through_function(node, sources[0])
    raise _Unknown


def _joined(sources: Sequence[Reach | None]) -> Reach | None:
    """Return the wider reach of two operands; they must be aligned."""
    local = [reach for reach in sources if reach is not None]
    if len({reach.stride for reach in local}) > 1:
        raise _Unknown
    return max(local, key=lambda reach: reach.kernel, default=None)


def _through_conv(source: Reach | None, conv: nn.Conv2d) -> Reach | None:
    if source is None:
        return None
    extent = [d * (k - 1) + 1 for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
    if conv.padding == "same":
        padding = [(n - 1) // 2 for n in extent]
    else:
        padding = [0, 0] if isinstance(conv.padding, str) else list(conv.padding)
    return source.then(extent, conv.stride, padding)


def _through_function(node: fx.Node, source: Reach | None) -> Reach | None:
    op = op_of(node.target)
    if op.pool == "mean":
        if node.target is aten.mean.dim and not _over_positions(node):
            raise _Unknown
        return None
    if source is None:
        raise _Unknown
    if node.target is aten.slice.Tensor:
        return _through_slice(node, source)
    arguments = bound_arguments(node) if op.pool or op.linear == "pad" else {}
    if op.pool == "window":
        kernel = _pair(arguments["kernel_size"])
        stride = _pair(arguments["stride"] or kernel)
        return source.then(kernel, stride, _pair(arguments["padding"]))
    if op.linear == "pad":
        return _through_pad(arguments, source)
    raise _Unknown


def _over_positions(node: fx.Node) -> bool:
    dims: Any = node.args[1]
    return isinstance(dims, (list, tuple)) and {d % 4 for d in dims} == {2, 3}


def _through_slice(node: fx.Node, source: Reach) -> Reach:
    """Follow the strided slice of a shortcut without parameters."""
    a = bound_arguments(node)
    dim, first, step = a["dim"], a["start"] or 0, a["step"]
    sizes = {node.meta.get("shape"), node.all_input_nodes[0].meta.get("shape")}
    if dim in (0, 1) and len(sizes) == 1 and (first, step) == (0, 1):
        return source  # x[:]
    if dim not in (2, 3) or not isinstance(first, int) or first < 0:
        raise _Unknown
    axis = dim - 2
    stride, padding = list(source.stride), list(source.padding)
    padding[axis] -= stride[axis] * first
    stride[axis] *= step
    return Reach(source.kernel, _pair(stride), _pair(padding))


def _through_pad(arguments: dict[str, Any], source: Reach) -> Reach:
    """Follow zeros put around the image or beside its channels."""
    pads = list(arguments["pad"])
    if arguments.get("mode", "constant") != "constant" or arguments.get("value") not in (None, 0):
        raise _Unknown
    if not all(isinstance(n, int) and n >= 0 for n in pads):
        raise _Unknown
    left, top = (pads[i] if len(pads) > i else 0 for i in (0, 2))
    return source.then((1, 1), (1, 1), (top, left))


def _pair(values: Any) -> Pair:
    numbers = [values] if isinstance(values, int) else list(values)
    if len(numbers) == 1:
        numbers *= 2
    return int(numbers[0]), int(numbers[1])
