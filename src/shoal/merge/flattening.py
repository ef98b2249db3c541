"""Flattening between convolutions and linear layers: where it is, and where it may be put.

Flattening and the linear layer after it are a convolution over the whole image, whose output has a
single position; later linear layers are convolutions over that position. A convolution over the
whole image computes the same as a linear layer, and much slower, so what is built is a linear layer
again, with the flattening before it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from shoal.merge.algebra import then
from shoal.merge.conv_map import ConvMap
from shoal.merge.linear_ops import tensor_shape
from shoal.merge.regions import Element, Layer

__all__ = ["as_built", "over_one_position", "place_of_flattening", "whole_image"]


def whole_image(chain: Sequence[Element], position: int) -> tuple[ConvMap, int] | None:
    """Return flattening and what follows, up to the first linear layer, as one convolution.

    The flattening is at `position`; the linear layer's position is returned with the map. None if
    none follows.
    """
    flattening = chain[position]
    channels, *size = (n for n in tensor_shape(flattening.source)[1:] if n is not None)
    composed: ConvMap | None = None
    for after in range(position + 1, len(chain)):
        element = chain[after]
        if not isinstance(element, Layer) or element.make is None:
            return None
        layer = element.make()
        composed = layer if composed is None else then(composed, layer)
        if not composed.is_affine:
            weight = composed.weight.reshape(len(composed.weight), channels, *size)
            ones, zeros = (1,) * len(size), (0,) * len(size)
            return ConvMap(weight, composed.bias, ones, zeros, ones, 1), after
    return None


def over_one_position(linear: ConvMap, spatial: int) -> ConvMap:
    """Return a linear layer as a convolution over a single position."""
    ones, zeros = (1,) * spatial, (0,) * spatial
    weight = linear.weight.reshape(*linear.weight.shape, *ones)
    return ConvMap(weight, linear.bias, ones, zeros, ones, linear.groups)


def place_of_flattening(start: fx.Node, end: fx.Node, composed: ConvMap | None) -> str | None:
    """Return where a flattening between two tensors goes: "before" or "after" the layers.

    It goes before layers that see the whole image, or one position; None where there is none.
    """
    shape = tensor_shape(start)
    if len(shape) == 2 or len(tensor_shape(end)) != 2:
        return None
    if all(n == 1 for n in shape[2:]):
        single = composed is None or composed.channels_out == tensor_shape(end)[1]
        return "before" if single else "after"
    return "before" if composed is not None and composed.covers(shape[2:]) else "after"


def as_built(composed: ConvMap, start: fx.Node, place: str | None) -> ConvMap:
    """Return the map of `start` in the form it is built in: linear where it reads flat values.

    `place` is that of a flattening, as `place_of_flattening` gives it.
    """
    shape = tensor_shape(start)
    if place == "before" and composed.covers(shape[2:]):
        return composed.flat()
    if composed.spatial and (place == "before" or len(shape) == 2):
        return _without_positions(composed)
    return composed


def _without_positions(composed: ConvMap) -> ConvMap:
    """Return a convolution from one position to one as a linear layer.

    Of its taps one reads the position, the others padding; a channel of ones is a bias there.
    """
    axes = list(zip(composed.padding, composed.dilation, composed.kernel, strict=True))
    weight = torch.zeros_like(composed.weight.flatten(2)[:, :, 0])
    if all(p % d == 0 and p // d < k for p, d, k in axes):
        weight = composed.weight.permute(*range(2, composed.weight.dim()), 0, 1)
        for p, d, _ in axes:
            weight = weight[p // d]
    bias = composed.bias
    if composed.ones:
        weight, bias = weight[:, :-1], bias + weight[:, -1]
    return ConvMap(weight, bias, (), (), (), composed.groups)
