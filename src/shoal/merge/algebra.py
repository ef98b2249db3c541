"""The algebra of linear layers: compose, add and fold convolutions and linear maps, exactly.

A `ConvMap` is a convolution with bias over n spatial dimensions, n = 0 being a linear layer, and a
per-channel scale and shift being a 1×1 depthwise one. Everything is computed in float64.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from shoal.network.modules import Line, OnesChannel

__all__ = ["ConvMap", "Inexact", "conv_padding"]


class Inexact(Exception):
    """Two maps have no single convolution that equals their composition everywhere."""


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

    # ------------------------------------------------------------------ composing

    def then(self, second: ConvMap) -> ConvMap:
        """Return the one map that does this and then `second`.

        M[o,i,t] = Σ_c Σ W2[o,c,b]·W1[c,i,a] over d1·a + s1·d2·b = t; stride s1·s2, padding
        p1 + s1·p2. It is exact where the second map reads no padding, or where this one turns the
        zeros outside the image into zeros. A pointwise map whose bias stands in the way gives it to
        a channel of ones, which is zero outside the image as the second map's padding is.

        Raises:
            Inexact: the second map's padding would have to hold what this one computes there.
        """
        if self.spatial != second.spatial:
            raise Inexact("the layers work on other dimensions")
        if second.ones:
            raise Inexact("the later layer carries a constant channel of its own")
        if any(second.padding) and (self.ones or not self.is_pointwise):
            raise Inexact("the later layer pads its input, so the borders would differ")
        if any(second.padding) and bool(self.bias.any()):
            return self._with_ones(second)
        if self.is_affine or second.is_affine:
            return self._scaled_after(second) if second.is_affine else self._scaled_before(second)
        light = self._with_depthwise(second)
        if light is not None:
            return light
        groups = math.gcd(self.groups, second.groups)
        first_weight, second_weight = _in_groups(self, groups), _in_groups(second, groups)
        weight, dilation = self._kernel_with(second, first_weight, second_weight)
        moved = torch.einsum(
            "goc,gc->go",
            second_weight.flatten(3).sum(3) if second.spatial else second_weight,
            self.bias.view(groups, -1),
        )
        return self._stepping_to(
            second, weight.flatten(0, 1), second.bias + moved.flatten(), dilation, groups
        )

    def _stepping_to(
        self,
        second: ConvMap,
        weight: Tensor,
        bias: Tensor,
        dilation: tuple[int, ...],
        groups: int,
    ) -> ConvMap:
        """Return a map with the stride and padding of both in a row."""
        stride = tuple(a * b for a, b in zip(self.stride, second.stride, strict=True))
        padding = tuple(
            p + s * q for p, s, q in zip(self.padding, self.stride, second.padding, strict=True)
        )
        return ConvMap(weight, bias, stride, padding, dilation, groups, self.ones)

    def _with_depthwise(self, second: ConvMap) -> ConvMap | None:
        """Compose a 1×1 and a depthwise map, in either order; None for any other two.

        The general way would write the depthwise one as a dense one first, which may be huge.
        """
        if not self.spatial:
            return None
        if all(k == 1 for k in self.kernel) and second.is_depthwise:
            step = tuple(s * d for s, d in zip(self.stride, second.dilation, strict=True))
            bias = second.bias + second.weight.flatten(1).sum(1) * self.bias
            return self._stepping_to(second, self.weight * second.weight, bias, step, self.groups)
        if self.is_depthwise and second.groups == 1 and all(k == 1 for k in second.kernel):
            weight = second.weight * self.weight.transpose(0, 1)
            bias = second.bias + second.weight.flatten(1) @ self.bias
            return self._stepping_to(second, weight, bias, self.dilation, 1)
        return None

    def _scaled_after(self, second: ConvMap) -> ConvMap:
        """Compose with a scale and shift of each output channel."""
        scale = second.weight.flatten()
        weight = self.weight * scale.view(-1, *[1] * (self.weight.dim() - 1))
        return replace(self, weight=weight, bias=self.bias * scale + second.bias)

    def _scaled_before(self, second: ConvMap) -> ConvMap:
        """Compose a scale and shift of each input channel with a map."""
        per_group = (second.groups, -1)
        rows = second.channels_out // second.groups
        scale, shift = (
            values.view(per_group).repeat_interleave(rows, 0)  # [out, in / groups]
            for values in (self.weight.flatten(), self.bias)
        )
        taps = second.weight.flatten(2).sum(2) if second.spatial else second.weight
        return replace(
            second,
            weight=second.weight * scale.view(*scale.shape, *[1] * second.spatial),
            bias=second.bias + (taps * shift).sum(1),
        )

    def _with_ones(self, second: ConvMap) -> ConvMap:
        """Compose a pointwise map with a padded one, its bias carried by a channel of ones."""
        silent = self.without_shift().then(second)
        if silent.groups > 1:
            raise Inexact("the later layer pads its input and works in groups")
        carried = torch.einsum("oc...,c->o...", _dense(second).squeeze(0), self.bias).unsqueeze(1)
        return replace(silent, weight=torch.cat([silent.weight, carried], 1), ones=True)

    def _kernel_with(
        self, second: ConvMap, first_weight: Tensor, second_weight: Tensor
    ) -> tuple[Tensor, tuple[int, ...]]:
        """Return the composed kernel, [groups, out, in, *kernel], and its dilation."""
        step = [s * d for s, d in zip(self.stride, second.dilation, strict=True)]
        if all(k == 1 for k in self.kernel):  # its taps stay as far apart as the second's
            point = first_weight.flatten(3).squeeze(3) if self.spatial else first_weight
            return torch.einsum("goc...,gci->goi...", second_weight, point), tuple(step)
        if all(k == 1 for k in second.kernel):
            point = second_weight.flatten(3).squeeze(3) if self.spatial else second_weight
            return torch.einsum("goc,gci...->goi...", point, first_weight), self.dilation
        size = [
            d * (k1 - 1) + s * (k2 - 1) + 1
            for d, k1, s, k2 in zip(self.dilation, self.kernel, step, second.kernel, strict=True)
        ]
        groups, out = second_weight.shape[:2]
        merged = second_weight.new_zeros(groups, out, first_weight.shape[2], *size)
        for tap in itertools.product(*map(range, second.kernel)):
            part = torch.einsum("goc,gci...->goi...", second_weight[_at(tap)], first_weight)
            where = tuple(
                slice(s * b, s * b + d * (k - 1) + 1, d)
                for s, b, d, k in zip(step, tap, self.dilation, self.kernel, strict=True)
            )
            merged[_at(where)] += part
        return merged, (1,) * self.spatial

    def plus(self, other: ConvMap) -> ConvMap:
        """Return the one map that adds the outputs of both, fed the same input.

        Raises:
            Inexact: their strides or output sizes differ.
        """
        if self.spatial != other.spatial:
            raise Inexact("the branches that are added work on other dimensions")
        if self.stride != other.stride:
            raise Inexact("the branches that are added have different strides")
        a, b = self._undilated_like(other), other._undilated_like(self)
        if a.ones or b.ones:
            a, b = a._with_silent_ones(), b._with_silent_ones()
        before, after = [], []
        for n in range(a.spatial):
            step = a.dilation[n]
            reach_a = step * (a.kernel[n] - 1) + 1 - 2 * a.padding[n]
            reach_b = step * (b.kernel[n] - 1) + 1 - 2 * b.padding[n]
            if reach_a != reach_b or (a.padding[n] - b.padding[n]) % step:
                raise Inexact("the branches that are added have different output sizes")
            most = max(a.padding[n], b.padding[n])
            before.append(((most - a.padding[n]) // step, (most - b.padding[n]) // step))
            after.append(most)
        groups = math.gcd(a.groups, b.groups)
        weight = _widened(_in_groups(a, groups), [x for x, _ in before])
        weight = weight + _widened(_in_groups(b, groups), [y for _, y in before])
        return ConvMap(
            weight.flatten(0, 1),
            a.bias + b.bias,
            a.stride,
            tuple(after),
            a.dilation,
            groups,
            a.ones,
        )

    def _with_silent_ones(self) -> ConvMap:
        """Return the same map with a channel of ones that it does not look at."""
        if self.ones:
            return self
        weight = _dense(self).squeeze(0)
        weight = torch.cat([weight, torch.zeros_like(weight[:, :1])], 1)
        return replace(self, weight=weight, groups=1, ones=True)

    def _undilated_like(self, other: ConvMap) -> ConvMap:
        """Return the same map with `other`'s dilation, which 1×1 kernels can take, or with 1."""
        if self.dilation == other.dilation:
            return self
        if all(k == 1 for k in self.kernel) and not any(self.padding):
            return replace(self, dilation=other.dilation)
        if all(k == 1 for k in other.kernel) and not any(other.padding):
            return self
        size = [d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel, strict=True)]
        weight = self.weight.new_zeros(*self.weight.shape[:2], *size)
        weight[_at([slice(None, None, d) for d in self.dilation])] = self.weight
        return replace(self, weight=weight, dilation=(1,) * self.spatial)

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
            return _filled(linear, _dense(self).squeeze(0), self.bias, like)
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


def _at(places: Sequence[int | slice]) -> Any:
    """Return the index of these places in a tensor's last dimensions."""
    return (..., *places)


def _dense(conv: ConvMap) -> Tensor:
    return _in_groups(conv, 1)


def _in_groups(conv: ConvMap, groups: int) -> Tensor:
    """Return the weight as [groups, out / groups, in / groups, *kernel], for fewer groups."""
    parts = conv.groups // groups
    own = conv.weight.reshape(groups, parts, -1, *conv.weight.shape[1:])
    if parts == 1:
        return own.squeeze(1)
    out, inner = own.shape[2], own.shape[3]
    wide = own.new_zeros(groups, parts, out, parts, inner, *conv.kernel)
    for part in range(parts):
        wide[:, part, :, part] = own[:, part]
    return wide.reshape(groups, parts * out, parts * inner, *conv.kernel)


def _widened(weight: Tensor, zeros: list[int]) -> Tensor:
    """Put so many zero taps on both sides of the kernel, per spatial dimension."""
    if not any(zeros):
        return weight
    return nn.functional.pad(weight, [z for n in reversed(zeros) for z in (n, n)])


def _filled(layer: nn.Module, weight: Tensor, bias: Tensor, like: Tensor) -> nn.Module:
    layer.weight = nn.Parameter(weight.to(like).contiguous())
    if layer.bias is not None:
        layer.bias = nn.Parameter(bias.to(like))
    return layer
