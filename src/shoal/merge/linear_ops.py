"""Which nodes of a captured graph are linear in eval mode, and the map each of them computes.

How an operator is linear, the operator table says in a word (`Op.linear`); here is what the words
mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn

from shoal.merge.conv_map import Conv, ConvMap, conv_padding
from shoal.network import Network
from shoal.network.flow import bound_arguments, is_weighted
from shoal.network.ops import op_of
from shoal.network.paths import lookup_tensor
from shoal.network.reach import pair

aten = torch.ops.aten


@dataclass(frozen=True)
class Linear:
    """A node that is linear in one tensor."""

    node: fx.Node
    source: fx.Node  # the tensor it reads
    # "conv" where channels are second, "last" where they are last, None where it does not matter
    # (a node that does nothing)
    layout: str | None
    # Gives its map, in float64; None for a flattening of [N, C, *positions] to [N, C·positions]
    make: Callable[[], ConvMap] | None
    weighted: bool  # whether it is a layer with weights


Found: TypeAlias = tuple[fx.Node, str | None, Callable[[], ConvMap] | None]
"""Of a `Linear`: source, layout and make."""


def tensor_shape(node: fx.Node) -> tuple[int | None, ...]:
    """Return the node's shape, None for the batch and what follows from it; () if unknown."""
    return tuple(node.meta.get("shape") or ())


def positions(node: fx.Node, *, linear: bool) -> int:
    """Return at how many positions of a sample, as far as known, a layer reads or gives a value."""
    shape = tensor_shape(node)
    sizes = shape[1:-1] if linear else shape[2:]  # channels come last, or after the samples
    return math.prod(n for n in sizes if n is not None)


def operands(node: fx.Node) -> tuple[fx.Node, fx.Node, float] | None:
    """Return (a, b, sign) for a node a + b or a − b of two tensors of the same shape."""
    sign = op_of(node.target).addition
    if not sign or node.kwargs.get("alpha", 1) != 1 or len(node.args) != 2:
        return None
    a, b = node.args
    if not isinstance(a, fx.Node) or not isinstance(b, fx.Node):
        return None
    if len(tensor_shape(a)) < 2 or tensor_shape(a) != tensor_shape(b):
        return None
    return a, b, sign


def linear_map(node: fx.Node, network: Network) -> Linear | None:
    """Return how a node is linear in one tensor in eval mode, or None."""
    if len(tensor_shape(node)) < 2:
        return None
    found = _find(node, network)
    if found is None or found[0].meta.get("dtype") != node.meta.get("dtype"):
        return None  # what follows could not read the source in the place of this
    return Linear(node, *found, is_weighted(node, network))


def _find(node: fx.Node, network: Network) -> Found | None:
    source = node.args[0] if node.args else None
    if node.op == "call_module" and isinstance(source, fx.Node):
        return _of_layer(source, network.get_submodule(str(node.target)))
    if node.op != "call_function":
        return None
    op = op_of(node.target)
    if op.addition or op.linear == "scale":
        return _of_constant(node, network)
    if callable(op.linear):
        return _of_layer(node.all_input_nodes[0], op.linear(bound_arguments(node)))
    make = _FUNCTIONS.get(op.linear or "")
    return make(source, node) if make is not None and isinstance(source, fx.Node) else None


def _nothing(source: fx.Node, _: object) -> Found | None:
    shape = tensor_shape(source)
    if len(shape) < 2 or not isinstance(shape[1], int):
        return None
    return source, None, partial(ConvMap.identity, 1, 0)


# ---------------------------------------------------------------------- layers


def _of_layer(source: fx.Node, layer: nn.Module) -> Found | None:
    linear = op_of(layer).linear
    if callable(linear):
        return _of_layer(source, linear(layer))
    make = _LAYERS.get(linear or "")
    return make and make(source, layer)


def _of_conv(source: fx.Node, conv: Conv) -> Found | None:
    padding = conv_padding(conv)
    if padding is None or len(tensor_shape(source)) != conv.weight.dim():
        return None
    return source, "conv", partial(ConvMap.of_layer, conv, padding)


def _of_batch_norm(source: fx.Node, norm: nn.modules.batchnorm._BatchNorm) -> Found | None:
    if norm.running_mean is None or norm.running_var is None:
        return None  # it normalises by the batch, also in eval mode
    scale = (norm.running_var.cpu().double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach().cpu().double()
    shift = -norm.running_mean.cpu().double() * scale
    if norm.bias is not None:
        shift = shift + norm.bias.detach().cpu().double()
    return _affine(source, scale, shift, 1)


def _affine(source: fx.Node, scale: Tensor, shift: Tensor, channel_dim: int) -> Found | None:
    """Return the scale and shift of the channels at `channel_dim`."""
    rank = len(tensor_shape(source))
    scale, shift = (values.detach().cpu().double().flatten() for values in (scale, shift))
    channel_dim %= rank
    channels = tensor_shape(source)[channel_dim]
    if len(scale) == 1 and isinstance(channels, int):  # a number, whatever the channels
        scale, shift = scale.expand(channels), shift.expand(channels)
    if channel_dim == rank - 1:
        return source, "last", partial(ConvMap.affine, scale, shift, 0)
    if channel_dim == 1 and 3 <= rank <= 5:
        return source, "conv", partial(ConvMap.affine, scale, shift, rank - 2)
    return None


_LAYERS: dict[str, Callable[[fx.Node, Any], Found | None]] = {
    "linear": lambda source, layer: (source, "last", partial(ConvMap.of_layer, layer)),
    "conv": _of_conv,
    "norm": _of_batch_norm,
    "line": lambda source, line: _affine(source, line.slope, line.intercept, line.channel_dim),
    "nothing": _nothing,
}


# ---------------------------------------------------------------------- functions


def _of_constant(node: fx.Node, network: Network) -> Found | None:
    """x·c, x/c, x + c or x − c, with c a number or a parameter along the channels."""
    source, constant = node.args[0], node.args[1] if len(node.args) > 1 else None
    if node.kwargs.get("alpha", 1) != 1:
        return None
    if not _is_value(source) and node.target not in (aten.div.Tensor, aten.sub.Tensor):
        source, constant = constant, source
    if not isinstance(source, fx.Node) or not _is_value(source):
        return None
    shape = tensor_shape(source)
    found = _channel_vector(constant, shape, network) if shape == tensor_shape(node) else None
    if found is None:
        return None
    vector, dim = found
    if sign := op_of(node.target).addition:
        return _affine(source, torch.ones_like(vector), vector * sign, dim)
    scale = 1.0 / vector if node.target in (aten.div.Tensor, aten.div.Scalar) else vector
    return _affine(source, scale, torch.zeros_like(vector), dim)


def _is_value(node: object) -> bool:
    return isinstance(node, fx.Node) and node.op != "get_attr"


def _channel_vector(
    constant: object, shape: tuple[int | None, ...], network: Network
) -> tuple[Tensor, int] | None:
    """Return a constant as one number per channel, and the dimension of the channels."""
    rank = len(shape)
    if isinstance(constant, (int, float)) and not isinstance(constant, bool):
        # a number goes with either layout; images have their channels second
        dim = 1 if rank in (2, 4, 5) else rank - 1
        channels = shape[dim]
        if not isinstance(channels, int):
            return None
        return torch.full((channels,), float(constant), dtype=torch.float64), dim
    if not isinstance(constant, fx.Node) or constant.op != "get_attr":
        return None
    value = lookup_tensor(network, str(constant.target))
    if value is None or not value.is_floating_point() or value.dim() > rank:
        return None
    wide = (1,) * (rank - value.dim()) + tuple(value.shape)
    along = [d for d, size in enumerate(wide) if size > 1]
    if len(along) != 1 or along[0] == 0 or shape[along[0]] != wide[along[0]]:
        return None
    return value.detach().cpu().double().flatten(), along[0]


def _of_flatten(source: fx.Node, node: fx.Node) -> Found | None:
    """[N, C, *positions] to [N, C·positions], by whatever name it goes."""
    (batch, *sizes), flat = tensor_shape(source) or (None,), tensor_shape(node)
    if len(sizes) not in (2, 3, 4) or not all(isinstance(n, int) for n in sizes):
        return None
    # As many elements in a row as a sample has: so the rows are the samples.
    if batch is not None or flat != (None, math.prod(n for n in sizes if n is not None)):
        return None
    return source, "conv", None


def _image(source: fx.Node) -> tuple[int, int]:
    """Return how many channels and spatial dimensions an image has; zeros for what is none."""
    shape = tensor_shape(source)
    return (shape[1] or 0, len(shape) - 2) if len(shape) in (3, 4, 5) else (0, 0)


def _of_padding(source: fx.Node, node: fx.Node) -> Found | None:
    """Zeros around an image, or beside its channels."""
    (channels, spatial), a = _image(source), bound_arguments(node)
    pads = [*a["pad"], *[0] * (2 * spatial + 4 - len(a["pad"]))]
    if a.get("mode", "constant") != "constant" or a["value"] not in (None, 0):
        return None
    if not channels or any(not isinstance(p, int) or p < 0 for p in pads):
        return None
    sides = list(zip(pads[::2], pads[1::2], strict=True))  # from the last dimension
    if sides[-1] != (0, 0) or any(a != b for a, b in sides[:spatial]):
        return None
    before, after = sides[spatial]
    padding = tuple(side for side, _ in reversed(sides[:spatial]))

    def make() -> ConvMap:
        eye = torch.eye(channels, dtype=torch.float64)
        weight = torch.cat([eye.new_zeros(before, channels), eye, eye.new_zeros(after, channels)])
        weight = weight.reshape(*weight.shape, *[1] * spatial)
        wider = ConvMap.over(weight, weight.new_zeros(len(weight)))
        same = not before and not after
        return replace(ConvMap.identity(channels, spatial) if same else wider, padding=padding)

    return source, "conv", make


def _of_slice(source: fx.Node, node: fx.Node) -> Found | None:
    """Every n-th position of an image along one dimension, from the first on."""
    (channels, spatial), a = _image(source), bound_arguments(node)
    dim, end, step = a["dim"], a["end"], a["step"]
    whole = a["start"] in (None, 0) and (end is None or (isinstance(end, int) and end >= 2**31))
    if not channels or not whole or not isinstance(dim, int) or not isinstance(step, int):
        return None
    place = dim % (spatial + 2) - 2
    if place < 0:
        return _nothing(source, node) if step == 1 else None
    stride = tuple(step if d == place else 1 for d in range(spatial))

    return source, "conv", lambda: replace(ConvMap.identity(channels, spatial), stride=stride)


def _of_average_pool(source: fx.Node, node: fx.Node) -> Found | None:
    (channels, spatial), a = _image(source), bound_arguments(node)
    if spatial != 2 or a["ceil_mode"] or a["divisor_override"] is not None:
        return None
    kernel, padding = pair(a["kernel_size"]), pair(a["padding"])
    stride = pair(a["stride"]) if a["stride"] else kernel
    if any(padding) and not a["count_include_pad"]:
        return None

    def make() -> ConvMap:
        share = 1.0 / (kernel[0] * kernel[1])
        weight = torch.full((channels, 1, *kernel), share, dtype=torch.float64)
        return ConvMap(weight, weight.new_zeros(channels), stride, padding, (1, 1), channels)

    return source, "conv", make


_FUNCTIONS: dict[str, Callable[[fx.Node, fx.Node], Found | None]] = {
    "flatten": _of_flatten, "slice": _of_slice, "pad": _of_padding,
    "average": _of_average_pool, "nothing": _nothing,
}  # fmt: skip
