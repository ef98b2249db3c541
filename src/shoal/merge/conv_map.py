"""A linear layer as a value: a convolution or linear map with bias, in float64.

A `ConvMap` is a convolution with bias over n spatial dimensions, n = 0 being a linear layer, and a
per-channel scale and shift being a 1×1 depthwise one.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from shoal.network.modules import Line, OnesChannel

Conv: TypeAlias = nn.Conv1d | nn.Conv2d | nn.Conv3d


@dataclass(frozen=True)
class ConvMap:
    """y = conv(x, weight, bias) with zero padding; stride and the like per spatial dimension."""

    weight: Tensor  # float64, [out, in / groups, *kernel]
    bias: Tensor  # float64, [out]
    stride: tuple[int, ...]
    padding: tuple[int, ...]  # zeros on both sides
    dilation: tuple[int, ...]
    groups: int  # of channels
    # Whether the last input channel is a constant 1 that is added to the input. It carries what an
    # inner bias gives where a padding of the composed layers does not reach.
    ones: bool = False

    # ------------------------------------------------------------------ makers

    @classmethod
    def affine(cls, scale: Tensor, shift: Tensor, spatial: int) -> ConvMap:
        """Return the per-channel map scale·x + shift; both have shape [channels]."""
        weight = scale.double().reshape(-1, 1, *[1] * spatial)
        return cls.over(weight, shift.double(), len(weight))

    @classmethod
    def identity(cls, channels: int, spatial: int) -> ConvMap:
        """Return the map that changes nothing."""
        return cls.affine(torch.ones(channels), torch.zeros(channels), spatial)

    @classmethod
    def of_layer(cls, layer: nn.Linear | Conv, padding: tuple[int, ...] = ()) -> ConvMap:
        """Return the map of a layer; `conv_padding` gives a convolution's padding in numbers."""
        weight = layer.weight.detach().cpu().double()
        bias = layer.bias
        bias = weight.new_zeros(len(weight)) if bias is None else bias.detach().cpu().double()
        if isinstance(layer, nn.Linear):
            return cls.over(weight, bias)
        stride, dilation = tuple(layer.stride), tuple(layer.dilation)
        return cls(weight, bias, stride, padding, dilation, layer.groups)

    @classmethod
    def over(cls, weight: Tensor, bias: Tensor, groups: int = 1) -> ConvMap:
        """Return the map of a kernel that is moved by one position and pads nothing."""
        ones = (1,) * (weight.dim() - 2)
        return cls(weight, bias, ones, (0,) * len(ones), ones, groups)

    # ------------------------------------------------------------------ what it is

    @property
    def spatial(self) -> int:
        """The number of spatial dimensions."""
        return self.weight.dim() - 2

    @property
    def kernel(self) -> tuple[int, ...]:
        """The kernel's size."""
        return tuple(self.weight.shape[2:])

    @property
    def channels_in(self) -> int:
        """The number of input channels, without the constant one."""
        return self.weight.shape[1] * self.groups - self.ones

    @property
    def channels_out(self) -> int:
        """The number of output channels."""
        return self.weight.shape[0]

    @property
    def is_depthwise(self) -> bool:
        """Whether each output channel reads the input channel of the same number and no other."""
        return self.groups == self.channels_in == self.channels_out and not self.ones

    @property
    def is_pointwise(self) -> bool:
        """Whether each output position reads one input position and nothing outside."""
        return all(k == 1 for k in self.kernel) and not any(self.padding)

    @property
    def is_affine(self) -> bool:
        """Whether it only scales and shifts each channel."""
        return self.is_depthwise and self.is_pointwise and all(s == 1 for s in self.stride)

    @property
    def is_identity(self) -> bool:
        """Whether it changes nothing at all."""
        return self.is_affine and bool((self.weight == 1).all()) and not bool(self.bias.any())

    def covers(self, size: Sequence[int | None]) -> bool:
        """Whether it reads all of an image of that size at once: a linear layer of its elements."""
        apart = all(d == 1 for k, d in zip(self.kernel, self.dilation, strict=True) if k > 1)
        whole = self.spatial > 0 and self.kernel == tuple(size) and not any(self.padding)
        return whole and apart and self.groups == 1 and not self.ones

    def flat(self) -> ConvMap:
        """Return a map that covers its images as one of their elements, C × positions in order."""
        return ConvMap.over(self.weight.flatten(1), self.bias)

    def at_one_position(self) -> ConvMap:
        """Return a convolution from one position to one as a linear layer."""
        # Of its taps one reads the position, the others padding; a channel of ones is a bias.
        axes = list(zip(self.padding, self.dilation, self.kernel, strict=True))
        weight = torch.zeros_like(self.weight.flatten(2)[:, :, 0])
        if all(p % d == 0 and p // d < k for p, d, k in axes):
            read: tuple[Any, ...] = tuple(p // d for p, d, _ in axes)
            weight = self.weight[(..., *read)]
        bias = self.bias
        if self.ones:
            weight, bias = weight[:, :-1], bias + weight[:, -1]
        return ConvMap.over(weight, bias, self.groups)

    def works_within(self, other: ConvMap) -> bool:
        """Whether this does a part of the work of `other`, which gives no fewer positions."""
        mine, theirs = ((*m.weight.shape[:2], *m.padding, m.ones) for m in (self, other))
        steps = zip(self.kernel, self.dilation, other.dilation, strict=True)
        return (
            self.kernel == other.kernel
            and self.groups == other.groups == 1
            and all(k == 1 or d == e for k, d, e in steps)
            and all(map(operator.le, mine, theirs))
            and all(map(operator.ge, self.stride, other.stride))
        )

    # ------------------------------------------------------------------ simple changes

    def in_groups(self, groups: int) -> Tensor:
        """Return the weight as [groups, out / groups, in / groups, *kernel], for fewer groups."""
        parts = self.groups // groups
        own = self.weight.reshape(groups, parts, -1, *self.weight.shape[1:])
        if parts == 1:
            return own.squeeze(1)
        out, inner = own.shape[2], own.shape[3]
        wide = own.new_zeros(groups, parts, out, parts, inner, *self.kernel)
        for part in range(parts):
            wide[:, part, :, part] = own[:, part]
        return wide.reshape(groups, parts * out, parts * inner, *self.kernel)

    def scaled(self, factor: float) -> ConvMap:
        """Return the map whose output is `factor` times this one's."""
        return replace(self, weight=self.weight * factor, bias=self.bias * factor)

    def without_shift(self) -> ConvMap:
        """Return the map without its bias."""
        return replace(self, bias=torch.zeros_like(self.bias))

    # ------------------------------------------------------------------ making a layer

    def layers(self, like: Tensor) -> list[nn.Module]:
        """Return the layers that compute this map, in the type and place of `like`."""
        if self.is_affine:
            dim = 1 if self.spatial else -1
            scale, shift = self.weight.flatten(), self.bias
            if bool((scale == scale[0]).all() and (shift == shift[0]).all()):
                scale, shift = scale[:1], shift[:1]  # a number goes with inputs of any size
            return [Line(scale.to(like), shift.to(like), dim)]
        weight, has_bias = self.weight, bool(self.bias.any())
        layer: nn.Linear | Conv
        if self.spatial == 0:
            weight = self.in_groups(1).squeeze(0)
            layer = nn.Linear(self.channels_in, self.channels_out, bias=has_bias, device="meta")
        else:
            make: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[self.spatial - 1]
            layer = make(
                self.channels_in + self.ones, self.channels_out, self.kernel, self.stride,
                self.padding, self.dilation, self.groups, has_bias, device="meta",
            )  # fmt: skip
        layer.weight = nn.Parameter(weight.to(like).contiguous())
        if has_bias:
            layer.bias = nn.Parameter(self.bias.to(like))
        return [OnesChannel(), layer] if self.ones else [layer]

    def describe(self) -> str:
        """Return the kind of layer in a few words, for reports."""
        if self.is_affine:
            return f"scale and shift {self.channels_in}"
        if self.spatial == 0:
            return f"linear {self.channels_in}→{self.channels_out}"
        kernel = "×".join(map(str, self.kernel))
        stride = f" s{'×'.join(map(str, self.stride))}" if any(s > 1 for s in self.stride) else ""
        groups = f" g{self.groups}" if self.groups > 1 else ""
        ones = "+1" if self.ones else ""
        return f"conv {kernel}{stride}{groups} {self.channels_in}{ones}→{self.channels_out}"


def conv_padding(layer: Conv) -> tuple[int, ...] | None:
    """Return how many zeros a convolution pads each side with; None if it pads otherwise."""
    if layer.padding_mode != "zeros":
        return None
    if not isinstance(layer.padding, str):
        return tuple(layer.padding)
    if layer.padding == "valid":
        return (0,) * len(layer.kernel_size)
    extent = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    return None if any(e % 2 for e in extent) else tuple(e // 2 for e in extent)
