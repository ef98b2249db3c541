"""How far each tensor of a stretch sees into the tensor it starts from, and the layer that would.

Composing layers composes what one output position reads: with (K, S, P) so far, a convolution of
kernel k, stride s, padding p and dilation d makes it (K + S·d·(k − 1), S·s, P + S·p), per axis.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from shoal.network.flow import bound_arguments, known_of
from shoal.network.ops import op_of

aten = torch.ops.aten

Pair = tuple[int, int]

MAX_COLUMNS = 10_240
"""The most columns a fit may have: its matrices then stay below 2 GiB."""

_ROWS_PER_COLUMN = 8  # positions that pin the weights down well
_FEWEST_ROWS = 32_768
_ROWS_PER_COLUMN_TO_RANK = 5  # positions that tell how well a layer can fit
_FEWEST_ROWS_TO_RANK = 16_384


@dataclass(frozen=True)
class LayerShape:
    """The layer to fit: a convolution, or a linear layer where there is no kernel."""

    in_channels: int  # of a linear layer, features in the last dimension
    out_channels: int
    kernel_size: tuple[int, ...] = ()  # per axis, as the following; () for a linear layer
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()

    @property
    def columns(self) -> int:
        """Weights per output channel, the bias not counted."""
        return self.in_channels * math.prod(self.kernel_size)

    @property
    def rows(self) -> int:
        """Positions to fit on: enough that more would hardly change the weights."""
        return max(_FEWEST_ROWS, _ROWS_PER_COLUMN * self.columns)

    @property
    def rows_to_rank(self) -> int:
        """Positions to fit on where only the residuals are compared; see `rows`."""
        return max(_FEWEST_ROWS_TO_RANK, _ROWS_PER_COLUMN_TO_RANK * self.columns)

    @property
    def fit_bytes(self) -> int:
        """The memory of the matrices while the data stream by."""
        return self.columns * (10 * self.columns + 8 * self.out_channels)

    def make(self, **factory: Any) -> nn.Conv2d | nn.Linear:
        """Return a new layer of this shape, with a bias; `factory` is its device and dtype."""
        if not self.kernel_size:
            return nn.Linear(self.in_channels, self.out_channels, **factory)
        return nn.Conv2d(**vars(self), **factory)


@dataclass(frozen=True)
class Reach:
    """What one position of a tensor reads of the start, per axis (height, width)."""

    kernel: Pair = (1, 1)  # the extent of what it reads
    stride: Pair = (1, 1)  # how far apart neighbouring positions read
    padding: Pair = (0, 0)  # how far before the start's first position the first one begins to read
    behind: Pair = (0, 0)  # how far behind its last one the last may read

    def then(
        self,
        kernel: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        behind: Sequence[int] | None = None,
    ) -> Reach:
        """Return the reach after a layer with this (dilated) kernel, stride and padding.

        What is put behind the image is as much as before it, unless `behind` says so.
        """
        axes = range(2)
        behind = padding if behind is None else behind
        return Reach(
            pair(self.kernel[i] + self.stride[i] * (kernel[i] - 1) for i in axes),
            pair(self.stride[i] * stride[i] for i in axes),
            pair(self.padding[i] + self.stride[i] * padding[i] for i in axes),
            pair(self.behind[i] + self.stride[i] * behind[i] for i in axes),
        )

    def spare(self, axis: int) -> int:
        """Return c of the output's size for an input of any size n: (n + c) // stride + 1."""
        return self.padding[axis] + self.behind[axis] - self.kernel[axis]


def conv_shape(
    start: fx.Node, end: fx.Node, reach: Reach, kernel: tuple[int, ...], dilation: tuple[int, ...]
) -> LayerShape | None:
    """Return the convolution of that kernel that is centred as the stretch is, if there is one.

    It gives the stretch's output size at every size of the input.
    """
    before, after = start.meta["shape"], end.meta["shape"]
    if len(before) != 4 or len(after) != 4 or None in (*before[1:], *after[1:]):
        return None
    padding = []
    for axis in range(2):
        extent = dilation[axis] * (kernel[axis] - 1) + 1
        twice = 2 * reach.padding[axis] - (reach.kernel[axis] - extent)
        for pad in (twice // 2, -(-twice // 2)):
            spare = 2 * pad - extent
            size = (before[2 + axis] + spare) // reach.stride[axis] + 1
            if pad >= 0 and spare == reach.spare(axis) and size == after[2 + axis]:
                padding.append(pad)
                break
        else:
            return None
    return LayerShape(before[1], after[1], kernel, reach.stride, tuple(padding), dilation)


class _Unknown(Exception):
    """A node does something that has no reach."""


def is_norm(node: fx.Node, root: nn.Module) -> bool:
    """Whether a node calls a batch norm."""
    module = root.get_submodule(str(node.target)) if node.op == "call_module" else None
    return isinstance(module, nn.modules.batchnorm._BatchNorm)


def is_passed(node: fx.Node, root: nn.Module, sites: Collection[str]) -> bool:
    """Whether a node acts on each entry alone and may be left behind a stretch's end."""
    return node.op == "call_module" and (node.target in sites or known_of(node, root).pointwise)


def reaches(
    start: fx.Node, inside: Sequence[fx.Node], root: nn.Module, sites: Collection[str], kind: type
) -> dict[fx.Node, Reach | None] | None:
    """Return the reach of each node inside a stretch, or None if one is not understood.

    Layers with weights may be of one `kind`, `nn.Conv2d` or `nn.Linear`. What reads the whole
    image, as the gate of a squeeze-and-excitation, has None.
    """
    found: dict[fx.Node, Reach | None] = {start: Reach()}
    try:
        for node in inside:
            sources = [found[n] for n in node.all_input_nodes if n in found]
            if not sources or node.meta.get("opaque"):
                return None
            found[node] = _reach(node, sources, root, sites, kind)
    except _Unknown:
        return None
    return found


def _reach(
    node: fx.Node, sources: list[Reach | None], root: nn.Module, sites: Collection[str], kind: type
) -> Reach | None:
    if node.op == "call_module":
        module = root.get_submodule(str(node.target))
        if isinstance(module, nn.Conv2d) and kind is nn.Conv2d:
            return _through_conv(sources[0], module)
        if isinstance(module, kind) or is_passed(node, root, sites) or is_norm(node, root):
            return sources[0]
    elif node.op == "call_function" and op_of(node.target).pointwise:
        local = [reach for reach in sources if reach is not None]
        if len({reach.stride for reach in local}) <= 1:  # else the operands are not aligned
            return max(local, key=lambda reach: reach.kernel, default=None)
    elif node.op == "call_function" and kind is nn.Conv2d:
        return _through_function(node, sources[0])
    raise _Unknown


def _through_conv(source: Reach | None, conv: nn.Conv2d) -> Reach | None:
    if source is None:
        return None
    extent = [d * (k - 1) + 1 for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
    if conv.padding == "same":
        before = [(n - 1) // 2 for n in extent]
        return source.then(extent, conv.stride, before, [n // 2 for n in extent])
    padding = [0, 0] if isinstance(conv.padding, str) else list(conv.padding)
    return source.then(extent, conv.stride, padding)


def _through_function(node: fx.Node, source: Reach | None) -> Reach | None:
    op = op_of(node.target)
    if op.pool == "mean":
        dims: Any = node.args[1] if node.target is aten.mean.dim else (2, 3)
        if not isinstance(dims, (list, tuple)) or {d % 4 for d in dims} != {2, 3}:
            raise _Unknown
        return None
    if source is None:
        raise _Unknown
    if node.target is aten.slice.Tensor:
        return _through_slice(node, source)
    if op.pool == "window":
        arguments = bound_arguments(node)
        kernel = pair(arguments["kernel_size"])
        stride = pair(arguments["stride"] or kernel)
        padding, dilation = pair(arguments["padding"]), pair(arguments.get("dilation", 1))
        extent = pair(dilation[i] * (kernel[i] - 1) + 1 for i in range(2))
        if not arguments["ceil_mode"]:
            return source.then(extent, stride, padding)
        if any(stride[i] > extent[i] - padding[i] for i in range(2)):
            raise _Unknown  # a last window that would lie behind the image is left out
        behind = pair(padding[i] + stride[i] - 1 for i in range(2))
        return source.then(extent, stride, padding, behind)
    if op.linear == "pad":
        return _through_pad(bound_arguments(node), source)
    raise _Unknown


def _through_slice(node: fx.Node, source: Reach) -> Reach:
    """Follow the strided slice of a shortcut without parameters."""
    a = bound_arguments(node)
    dim, first, step = a["dim"], a["start"] or 0, a["step"]
    sizes = {node.meta.get("shape"), node.all_input_nodes[0].meta.get("shape")}
    if dim in (0, 1) and len(sizes) == 1 and (first, step) == (0, 1):
        return source  # x[:]
    if dim not in (2, 3) or not isinstance(first, int) or first < 0:
        raise _Unknown
    size, end = (node.all_input_nodes[0].meta.get("shape") or [None] * 4)[dim], a["end"]
    last = min(end, 0) if isinstance(end, int) else 0
    if isinstance(end, int) and size is not None and 0 <= end < size:
        raise _Unknown  # what is left does not follow the image's size
    steps, before, behind = [1, 1], [0, 0], [0, 0]
    steps[dim - 2], before[dim - 2], behind[dim - 2] = step, -first, last
    return source.then((1, 1), steps, before, behind)


def _through_pad(arguments: dict[str, Any], source: Reach) -> Reach:
    """Follow zeros put around the image or beside its channels."""
    pads = list(arguments["pad"])
    zeros = arguments.get("mode", "constant") == "constant" and not arguments.get("value")
    if not zeros or not all(isinstance(n, int) and n >= 0 for n in pads):
        raise _Unknown
    left, right, top, bottom = (*pads, 0, 0, 0, 0)[:4]
    return source.then((1, 1), (1, 1), (top, left), (bottom, right))


def pair(values: Any) -> Pair:
    """Return the two numbers of a kernel, a stride or a padding, which may be given as one."""
    numbers = [values] if isinstance(values, int) else list(values)
    return int(numbers[0]), int(numbers[-1])
