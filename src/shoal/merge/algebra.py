"""The algebra of linear layers: the one map that two in a row, or two side by side, amount to.

Pure functions on `ConvMap`s, in float64. Where no single map equals both everywhere they raise
`Inexact`, whose text says why.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from shoal.merge.conv_map import ConvMap


class Inexact(Exception):
    """Two maps have no single convolution that equals their composition everywhere."""


def in_a_row(maps: Sequence[ConvMap]) -> ConvMap:
    """Return the one map that does one after the other."""
    # Where joining from the front is not exact, joining from the back may be: a shift before a
    # padded layer in groups cannot be carried on, but can if a dense layer follows.
    try:
        return reduce(then, maps)
    except Inexact:
        if len(maps) < 3:
            raise
        return reduce(lambda second, first: then(first, second), reversed(maps))


# ---------------------------------------------------------------------- one after the other


def then(first: ConvMap, second: ConvMap) -> ConvMap:
    """Return the one map that does `first` and then `second`.

    M[o,i,t] = Σ_c Σ W2[o,c,b]·W1[c,i,a] over d1·a + s1·d2·b = t; stride s1·s2, padding p1 + s1·p2.
    It is exact where the second map reads no padding, or where the first one turns the zeros
    outside the image into zeros. A pointwise map whose bias stands in the way gives it to a channel
    of ones, which is zero outside the image as the second map's padding is. Else it is `Inexact`:
    the second map's padding would have to hold what the first one computes there.
    """
    if first.spatial != second.spatial:
        raise Inexact("the layers work on other dimensions")
    if second.ones:
        raise Inexact("the later layer carries a constant channel of its own")
    if any(second.padding) and (first.ones or not first.is_pointwise):
        raise Inexact("the later layer pads its input, so the borders would differ")
    if any(second.padding) and bool(first.bias.any()):
        return _with_ones(first, second)
    if second.is_affine:
        return _scaled_after(first, second)
    if first.is_affine:
        return _scaled_before(first, second)
    light = _with_depthwise(first, second)
    return light if light is not None else _convolved(first, second)


def _convolved(first: ConvMap, second: ConvMap) -> ConvMap:
    groups = math.gcd(first.groups, second.groups)
    inner, outer = first.in_groups(groups), second.in_groups(groups)
    weight, dilation = _kernel(first, second, inner, outer)
    taps = outer.flatten(3).sum(3) if second.spatial else outer
    moved = torch.einsum("goc,gc->go", taps, first.bias.view(groups, -1)).flatten()
    return _stepping(
        first, second, weight=weight.flatten(0, 1), bias=second.bias + moved, dilation=dilation,
        groups=groups,
    )  # fmt: skip


def _stepping(first: ConvMap, second: ConvMap, **parts: Any) -> ConvMap:
    """Return a map of these parts, with the stride and padding of both in a row."""
    steps = zip(first.padding, first.stride, second.padding, strict=True)
    stride = tuple(a * b for a, b in zip(first.stride, second.stride, strict=True))
    return replace(first, stride=stride, padding=tuple(p + s * q for p, s, q in steps), **parts)


def _with_depthwise(first: ConvMap, second: ConvMap) -> ConvMap | None:
    """Compose a 1×1 and a depthwise map without a dense kernel, which may be huge; else None."""
    if not first.spatial:
        return None
    if all(k == 1 for k in first.kernel) and second.is_depthwise:
        step = tuple(s * d for s, d in zip(first.stride, second.dilation, strict=True))
        bias = second.bias + second.weight.flatten(1).sum(1) * first.bias
        weight = first.weight * second.weight
        return _stepping(first, second, weight=weight, bias=bias, dilation=step)
    if first.is_depthwise and second.groups == 1 and all(k == 1 for k in second.kernel):
        weight = second.weight * first.weight.transpose(0, 1)
        bias = second.bias + second.weight.flatten(1) @ first.bias
        return _stepping(first, second, weight=weight, bias=bias, groups=1)
    return None


def _scaled_after(first: ConvMap, line: ConvMap) -> ConvMap:
    """Compose a map with a scale and shift of each output channel."""
    scale = line.weight.flatten()
    weight = first.weight * scale.view(-1, *[1] * (first.weight.dim() - 1))
    return replace(first, weight=weight, bias=first.bias * scale + line.bias)


def _scaled_before(line: ConvMap, second: ConvMap) -> ConvMap:
    """Compose a scale and shift of each input channel with a map."""
    rows = second.channels_out // second.groups
    scale, shift = (
        values.view(second.groups, -1).repeat_interleave(rows, 0)  # [out, in / groups]
        for values in (line.weight.flatten(), line.bias)
    )
    taps = second.weight.flatten(2).sum(2) if second.spatial else second.weight
    return replace(
        second,
        weight=second.weight * scale.view(*scale.shape, *[1] * second.spatial),
        bias=second.bias + (taps * shift).sum(1),
    )


def _with_ones(first: ConvMap, second: ConvMap) -> ConvMap:
    """Compose a pointwise map with a padded one, its bias carried by a channel of ones."""
    silent = then(first.without_shift(), second)
    if silent.groups > 1:
        raise Inexact("the later layer pads its input and works in groups")
    carried = torch.einsum("oc...,c->o...", second.in_groups(1).squeeze(0), first.bias)
    return replace(silent, weight=torch.cat([silent.weight, carried.unsqueeze(1)], 1), ones=True)


def _kernel(
    first: ConvMap, second: ConvMap, inner: Tensor, outer: Tensor
) -> tuple[Tensor, tuple[int, ...]]:
    """Return the composed kernel, [groups, out, in, *kernel], and its dilation.

    `inner` is the first map's weight, [groups, middle, in, *kernel], `outer` the second one's.
    """
    step = [s * d for s, d in zip(first.stride, second.dilation, strict=True)]
    if all(k == 1 for k in first.kernel):  # its taps stay as far apart as the second's
        point = inner.flatten(3).squeeze(3) if first.spatial else inner
        return torch.einsum("goc...,gci->goi...", outer, point), tuple(step)
    if all(k == 1 for k in second.kernel):
        point = outer.flatten(3).squeeze(3) if first.spatial else outer
        return torch.einsum("goc,gci...->goi...", point, inner), first.dilation
    size = [
        d * (k1 - 1) + s * (k2 - 1) + 1
        for d, k1, s, k2 in zip(first.dilation, first.kernel, step, second.kernel, strict=True)
    ]
    merged = outer.new_zeros(*outer.shape[:2], inner.shape[2], *size)
    for tap in itertools.product(*map(range, second.kernel)):
        part = torch.einsum("goc,gci...->goi...", outer[_at(tap)], inner)
        where = tuple(
            slice(s * b, s * b + d * (k - 1) + 1, d)
            for s, b, d, k in zip(step, tap, first.dilation, first.kernel, strict=True)
        )
        merged[_at(where)] += part
    return merged, (1,) * first.spatial


# ---------------------------------------------------------------------- side by side


def plus(a: ConvMap, b: ConvMap) -> ConvMap:
    """Return the one map that adds the outputs of both; `Inexact` if strides or sizes differ."""
    if a.spatial != b.spatial:
        raise Inexact("the branches that are added work on other dimensions")
    if a.stride != b.stride:
        raise Inexact("the branches that are added have different strides")
    a, b = _undilated_like(a, b), _undilated_like(b, a)
    if a.ones or b.ones:
        a, b = _with_silent_ones(a), _with_silent_ones(b)
    padding = tuple(max(p, q) for p, q in zip(a.padding, b.padding, strict=True))
    widths = [], []  # type: tuple[list[int], list[int]]
    for n, step in enumerate(a.dilation):
        reach_a, reach_b = (step * (m.kernel[n] - 1) + 1 - 2 * m.padding[n] for m in (a, b))
        if reach_a != reach_b or (a.padding[n] - b.padding[n]) % step:
            raise Inexact("the branches that are added have different output sizes")
        for width, one in zip(widths, (a, b), strict=True):
            width.append((padding[n] - one.padding[n]) // step)
    groups = math.gcd(a.groups, b.groups)
    weight = _widened(a.in_groups(groups), widths[0]) + _widened(b.in_groups(groups), widths[1])
    return ConvMap(
        weight.flatten(0, 1), a.bias + b.bias, a.stride, padding, a.dilation, groups, a.ones
    )


def _with_silent_ones(one: ConvMap) -> ConvMap:
    """Return the same map with a channel of ones that it does not look at."""
    if one.ones:
        return one
    weight = one.in_groups(1).squeeze(0)
    weight = torch.cat([weight, torch.zeros_like(weight[:, :1])], 1)
    return replace(one, weight=weight, groups=1, ones=True)


def _undilated_like(one: ConvMap, other: ConvMap) -> ConvMap:
    """Return the same map with `other`'s dilation, which 1×1 kernels can take, or with 1."""
    if one.dilation == other.dilation or other.is_pointwise:
        return one
    if one.is_pointwise:
        return replace(one, dilation=other.dilation)
    size = [d * (k - 1) + 1 for d, k in zip(one.dilation, one.kernel, strict=True)]
    weight = one.weight.new_zeros(*one.weight.shape[:2], *size)
    weight[_at([slice(None, None, d) for d in one.dilation])] = one.weight
    return replace(one, weight=weight, dilation=(1,) * one.spatial)


def _at(places: Sequence[int | slice]) -> Any:
    return (..., *places)  # in a tensor's last dimensions


def _widened(weight: Tensor, zeros: Sequence[int]) -> Tensor:
    """Put this many zero taps on both sides of the kernel, per spatial dimension."""
    return nn.functional.pad(weight, [z for n in reversed(zeros) for z in (n, n)])
