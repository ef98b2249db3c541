"""A linear layer as a value: a convolution or linear map with bias, in float64.

A `ConvMap` is a convolution with bias over n spatial dimensions, n = 0 being a linear layer, and a
per-channel scale and shift being a 1×1 depthwise one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from shoal.network.modules import Line, OnesChannel

__all__ = ["ConvMap", "conv_padding"]


@dataclass(frozen=True)
class ConvMap:
    """y = conv(x, weight, bias) with zero padding.

    Attributes:
        weight: float64, shape [out, in / groups, *kernel].
        bias: float64, shape [out].
        stride: per spatial dimension.
        padding: zeros on both sides, per spatial dimension.
        dilation: per spatial dimension.
        groups: of channels.
        ones: whether the last input channel is a constant 1 that is added to the input. It carries
            what an inner bias gives where a padding of the composed layers does not reach.
    """

    weight: Tensor
    bias: Tensor
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    ones: bool = False

    # ------------------------------------------------------------------ makers

    @classmethod
    def affine(cls, scale: Tensor, shift: Tensor, spatial: int) -> ConvMap:
        """Return the per-channel map scale·x + shift; both have shape [channels]."""
        weight = scale.double().reshape(-1, 1, *[1] * spatial)
        ones, zeros = (1,) * spatial, (0,) * spatial
        return cls(weight, shift.double(), ones, zeros, ones, len(weight))

    @classmethod
    def identity(cls, channels: int, spatial: int) -> ConvMap:
        """Return the map that changes nothing."""
        return cls.affine(torch.ones(channels), torch.zeros(channels), spatial)

    @classmethod
    def of_linear(cls, layer: nn.Linear) -> ConvMap:
        """Return the map of a linear layer."""
        weight = layer.weight.detach().cpu().double()
        return cls(weight, _bias(layer.bias, weight), (), (), (), 1)

    @classmethod
    def of_conv(cls, layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, padding: tuple[int, ...]) -> ConvMap:
        """Return the map of a convolution whose padding, in numbers, `conv_padding` gave."""
        weight = layer.weight.detach().cpu().double()
        bias = _bias(layer.bias, weight)
        stride, dilation = tuple(layer.stride), tuple(layer.dilation)
        return cls(weight, bias, stride, padding, dilation, layer.groups)

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
        return ConvMap(self.weight.flatten(1), self.bias, (), (), (), 1)

    def works_within(self, other: ConvMap) -> bool:
        """Whether this does a part of the work of `other`: the same with no more channels.

        Args:
            other: a map that gives no fewer output positions.
        """
        taps = zip(self.kernel, self.dilation, other.dilation, strict=True)
        apart = all(k == 1 or mine == theirs for k, mine, theirs in taps)
        one_group = self.groups == other.groups == 1
        sizes = zip(self.weight.shape[:2], other.weight.shape[:2], strict=True)
        smaller = all(mine <= theirs for mine, theirs in sizes)
        paddings = zip(self.padding, other.padding, strict=True)
        strides = zip(self.stride, other.stride, strict=True)
        return (
            self.kernel == other.kernel and apart and one_group and smaller
            and self.ones <= other.ones
            and all(mine <= theirs for mine, theirs in paddings)
            and all(mine >= theirs for mine, theirs in strides)
        )  # fmt: skip

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
            return [Line(self.weight.flatten().to(like), self.bias.to(like), dim)]
        layer = self._plain_layer(like)
        return [OnesChannel(), layer] if self.ones else [layer]

    def _plain_layer(self, like: Tensor) -> nn.Module:
        bias = bool(self.bias.any())
        if self.spatial == 0:
            linear = nn.Linear(self.channels_in, self.channels_out, bias=bias, device="meta")
            return _filled(linear, self.in_groups(1).squeeze(0), self.bias, like)
        make = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[self.spatial - 1]
        conv = make(
            self.channels_in + self.ones,
            self.channels_out,
            self.kernel,  # type: ignore[arg-type]
            stride=self.stride,  # type: ignore[arg-type]
            padding=self.padding,  # type: ignore[arg-type]
            dilation=self.dilation,  # type: ignore[arg-type]
            groups=self.groups,
            bias=bias,
            device="meta",
        )
        return _filled(conv, self.weight, self.bias, like)

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


def conv_padding(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> tuple[int, ...] | None:
    """Return how many zeros a convolution pads each side with; None if it pads otherwise."""
    if layer.padding_mode != "zeros":
        return None
    if not isinstance(layer.padding, str):
        return tuple(layer.padding)
    if layer.padding == "valid":
        return (0,) * len(layer.kernel_size)
    extent = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    return None if any(e % 2 for e in extent) else tuple(e // 2 for e in extent)


def _bias(bias: Tensor | None, weight: Tensor) -> Tensor:
    return weight.new_zeros(len(weight)) if bias is None else bias.detach().cpu().double()


def _filled(layer: nn.Module, weight: Tensor, bias: Tensor, like: Tensor) -> nn.Module:
    layer.weight = nn.Parameter(weight.to(like).contiguous())
    if layer.bias is not None:
        layer.bias = nn.Parameter(bias.to(like))
    return layer
