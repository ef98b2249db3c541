"""Each case of the algebra against dense matrices, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from shoal.merge.algebra import Inexact, in_a_row, plus, then
from shoal.merge.conv_map import ConvMap

SIZE = {0: (), 1: (11,), 2: (9, 8), 3: (5, 6, 5)}
CONV = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


def conv(
    inner: int,
    outer: int,
    kernel: int = 1,
    *,
    spatial: int = 2,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
    bias: bool = True,
    ones: bool = False,
    seed: int = 0,
) -> ConvMap:
    generator = torch.Generator().manual_seed(seed + 7 * inner + 13 * outer + 29 * kernel)
    n = inner + ones
    shape = (outer, n // groups, *[kernel] * spatial)
    weight = torch.randn(shape, generator=generator, dtype=torch.float64)
    shift = torch.randn(outer, generator=generator, dtype=torch.float64) * bias
    same = [(value,) * spatial for value in (stride, padding, dilation)]
    return ConvMap(weight, shift, *same, groups, ones)


def line(channels: int, *, spatial: int = 2, scale: bool = True, shift: bool = True) -> ConvMap:
    generator = torch.Generator().manual_seed(channels)
    a = torch.randn(channels, generator=generator, dtype=torch.float64)
    b = torch.randn(channels, generator=generator, dtype=torch.float64)
    return ConvMap.affine(a if scale else torch.ones_like(a), b * shift, spatial)


def run(one: ConvMap, x: Tensor) -> Tensor:
    if one.ones:
        x = torch.cat([x, torch.ones_like(x[:, :1])], 1)
    if not one.spatial:
        blocks = one.weight.reshape(one.groups, -1, one.weight.shape[1])
        return x @ torch.block_diag(*blocks).T + one.bias
    options = {k: getattr(one, k) for k in ("stride", "padding", "dilation", "groups")}
    return CONV[one.spatial](x, one.weight, one.bias, **options)


def dense(function, one: ConvMap) -> tuple[Tensor, Tensor]:
    """The matrix and the shift of a map on one image, row by row from unit vectors."""
    shape = (one.channels_in, *SIZE[one.spatial])
    n = torch.Size(shape).numel()
    shift = function(torch.zeros(1, *shape, dtype=torch.float64)).flatten()
    units = torch.eye(n, dtype=torch.float64).reshape(n, *shape)
    return (function(units).flatten(1) - shift).T, shift


def check_then(first: ConvMap, second: ConvMap) -> ConvMap:
    composed = then(first, second)
    check_same(composed, lambda x: run(second, run(first, x)), first)
    # and as the product of the dense matrices of both
    a, s = dense(lambda x: run(first, x), first)
    middle = run(first, torch.zeros(1, first.channels_in, *SIZE[first.spatial]).double()).shape[1:]
    n = middle.numel()
    t = run(second, torch.zeros(1, *middle, dtype=torch.float64)).flatten()
    b = (run(second, torch.eye(n, dtype=torch.float64).reshape(n, *middle)).flatten(1) - t).T
    matrix, shift = dense(lambda x: run(composed, x), composed)
    torch.testing.assert_close(matrix, b @ a, rtol=1e-12, atol=1e-11)
    torch.testing.assert_close(shift, b @ s + t, rtol=1e-12, atol=1e-11)
    return composed


def check_same(composed: ConvMap, function, first: ConvMap) -> None:
    matrix, shift = dense(lambda x: run(composed, x), composed)
    expected, moved = dense(function, first)
    torch.testing.assert_close(matrix, expected, rtol=1e-12, atol=1e-11)
    torch.testing.assert_close(shift, moved, rtol=1e-12, atol=1e-11)


# ---------------------------------------------------------------------- one after the other


@pytest.mark.parametrize("spatial", [1, 2, 3])
@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"kernel": 3}, {"kernel": 2}),
        ({"kernel": 3, "padding": 1}, {"kernel": 3}),
        ({"kernel": 2, "stride": 2}, {"kernel": 2}),
        ({"kernel": 2, "stride": 2, "padding": 1}, {"kernel": 2, "stride": 2}),
        ({"kernel": 2, "dilation": 2}, {"kernel": 2}),
        ({"kernel": 2}, {"kernel": 2, "dilation": 2}),
        ({"kernel": 2, "groups": 2}, {"kernel": 2, "groups": 2}),
        ({"kernel": 2, "groups": 2}, {"kernel": 2}),
        ({"kernel": 2}, {"kernel": 2, "groups": 2}),
        ({"kernel": 2, "groups": 4}, {"kernel": 2, "groups": 2}),
        ({"kernel": 1}, {"kernel": 3, "dilation": 2}),
        ({"kernel": 1, "stride": 2}, {"kernel": 2}),
        ({"kernel": 3, "dilation": 2}, {"kernel": 1}),
        ({"kernel": 3, "padding": 1}, {"kernel": 1, "stride": 2}),
        ({"kernel": 1}, {"kernel": 1}),
        ({"kernel": 1}, {"kernel": 3, "groups": 4}),
        ({"kernel": 1, "stride": 2}, {"kernel": 2, "groups": 4, "dilation": 2}),
        ({"kernel": 3, "groups": 4, "padding": 1, "stride": 2}, {"kernel": 1}),
        ({"kernel": 3, "groups": 4}, {"kernel": 1, "groups": 2}),
        ({"kernel": 1, "bias": False}, {"kernel": 3, "padding": 1}),
        ({"kernel": 1, "bias": False, "stride": 2}, {"kernel": 2, "padding": 1, "groups": 2}),
        ({"kernel": 1}, {"kernel": 3, "padding": 1}),
        ({"kernel": 1, "stride": 2}, {"kernel": 2, "padding": 1, "dilation": 2}),
        ({"kernel": 2, "ones": True}, {"kernel": 2}),
        ({"kernel": 3, "padding": 1, "ones": True}, {"kernel": 1}),
    ],
)
def test_two_convolutions(spatial: int, first: dict, second: dict) -> None:
    check_then(conv(4, 4, spatial=spatial, **first), conv(4, 4, spatial=spatial, seed=1, **second))


@pytest.mark.parametrize("spatial", [0, 1, 2, 3])
def test_linear_layers_and_lines_compose(spatial: int) -> None:
    wide, narrow = conv(3, 5, spatial=spatial), conv(5, 2, spatial=spatial)
    check_then(wide, narrow)
    check_then(wide, line(5, spatial=spatial))
    check_then(line(3, spatial=spatial), wide)
    both = check_then(line(3, spatial=spatial), line(3, spatial=spatial))
    assert both.is_affine
    assert then(ConvMap.identity(3, spatial), ConvMap.identity(3, spatial)).is_identity


@pytest.mark.parametrize("options", [{"groups": 2}, {"groups": 4}, {"stride": 2, "dilation": 2}])
def test_a_line_goes_into_what_comes_before_and_after(options: dict) -> None:
    kernel = conv(4, 4, 2, **options)
    assert check_then(line(4), kernel).kernel == (2, 2)
    assert check_then(kernel, line(4)).kernel == (2, 2)
    padded = conv(4, 4, 3, padding=1, **options)
    assert not check_then(line(4, shift=False), padded).ones
    assert not check_then(padded, line(4)).ones


def test_a_shift_before_padding_is_carried_by_a_channel_of_ones() -> None:
    composed = check_then(line(4), conv(4, 3, 3, padding=1))
    assert composed.ones
    assert composed.channels_in == 4
    deeper = check_then(composed, conv(3, 2, 2))  # the channel of ones goes on
    assert deeper.ones


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        (conv(2, 2, 3), conv(2, 2, 3, padding=1), "borders would differ"),
        (conv(2, 2, 1, padding=1), conv(2, 2, 3, padding=1), "borders would differ"),
        (conv(4, 4, 1, groups=2), conv(4, 4, 3, padding=1, groups=2), "in groups"),
        (conv(2, 2, 1), conv(2, 2, 2, ones=True), "constant channel of its own"),
        (conv(2, 2, 1, ones=True), conv(2, 2, 3, padding=1), "borders would differ"),
        (conv(2, 2, spatial=1), conv(2, 2, spatial=2), "other dimensions"),
    ],
)
def test_what_is_not_exact_is_refused(first: ConvMap, second: ConvMap, words: str) -> None:
    with pytest.raises(Inexact, match=words):
        then(first, second)


def test_where_it_is_refused_the_composed_kernel_really_differs() -> None:
    """Only at the border: inside, the kernel of both without padding is right."""
    first, second = conv(2, 3, 3, padding=1), conv(3, 2, 3, padding=1)
    unpadded = then(first, conv(3, 2, 3))
    again = ConvMap(unpadded.weight, unpadded.bias, (1, 1), (2, 2), (1, 1), 1)
    x = torch.randn(1, 2, 11, 9, dtype=torch.float64)
    right, wrong = run(second, run(first, x)), run(again, x)
    assert right.shape == wrong.shape
    inside = (..., slice(1, -1), slice(1, -1))
    torch.testing.assert_close(wrong[inside], right[inside], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(wrong, right)
    # A shift before padding in groups: no single layer in groups gives it either.
    shifted, grouped = line(2, scale=False), conv(2, 2, 3, padding=1, groups=2, seed=3)
    naive = ConvMap(grouped.weight, run(grouped, run(shifted, x * 0))[0, :, 4, 4],
                    (1, 1), (1, 1), (1, 1), 2)  # fmt: skip
    right, wrong = run(grouped, run(shifted, x)), run(naive, x)
    torch.testing.assert_close(wrong[inside], right[inside], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(wrong, right)


def test_in_a_row_joins_from_the_back_where_the_front_is_not_exact() -> None:
    maps = [line(4), conv(4, 4, 3, padding=1, groups=4), conv(4, 4, 1)]
    with pytest.raises(Inexact):
        then(maps[0], maps[1])
    composed = in_a_row(maps)
    check_same(composed, lambda x: run(maps[2], run(maps[1], run(maps[0], x))), maps[0])
    with pytest.raises(Inexact):
        in_a_row(maps[:2])


# ---------------------------------------------------------------------- side by side


@pytest.mark.parametrize("spatial", [1, 2, 3])
@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"kernel": 3, "padding": 1}, {"kernel": 3, "padding": 1}),
        ({"kernel": 3, "padding": 1}, {"kernel": 1}),
        ({"kernel": 5, "padding": 2}, {"kernel": 3, "padding": 1}),
        ({"kernel": 3, "padding": 1, "stride": 2}, {"kernel": 1, "stride": 2}),
        ({"kernel": 3, "padding": 2, "dilation": 2}, {"kernel": 1}),
        ({"kernel": 3, "padding": 2, "dilation": 2}, {"kernel": 3, "padding": 1}),
        ({"kernel": 3, "padding": 2, "dilation": 2}, {"kernel": 1, "dilation": 3}),
        ({"kernel": 1, "dilation": 2}, {"kernel": 1, "dilation": 3}),
        ({"kernel": 3, "padding": 1, "groups": 4}, {"kernel": 3, "padding": 1, "groups": 2}),
        ({"kernel": 3, "padding": 1, "groups": 4}, {"kernel": 1}),
        ({"kernel": 3, "padding": 1, "ones": True}, {"kernel": 1, "groups": 4}),
        ({"kernel": 2}, {"kernel": 2, "dilation": 1, "groups": 2}),
    ],
)
def test_branches_are_added(spatial: int, first: dict, second: dict) -> None:
    a, b = conv(4, 4, spatial=spatial, **first), conv(4, 4, spatial=spatial, seed=5, **second)
    for one, two in ((a, b), (b, a)):
        check_same(plus(one, two), lambda x, o=one, t=two: run(o, x) + run(t, x), one)


@pytest.mark.parametrize("spatial", [0, 1, 2, 3])
def test_a_skip_and_a_line_are_added(spatial: int) -> None:
    layer, skip = conv(3, 3, spatial=spatial), ConvMap.identity(3, spatial)
    check_same(plus(layer, skip), lambda x: run(layer, x) + x, layer)
    difference = plus(layer, skip.scaled(-1.0))
    check_same(difference, lambda x: run(layer, x) - x, layer)
    twice = plus(line(3, spatial=spatial), skip)
    assert twice.is_affine
    check_same(twice, lambda x: run(line(3, spatial=spatial), x) + x, twice)


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        (conv(2, 2, 3, stride=2), conv(2, 2, 3), "different strides"),
        (conv(2, 2, 3), conv(2, 2, 1), "different output sizes"),
        (conv(2, 2, 3, padding=2, dilation=2), conv(2, 2, 2, dilation=2, padding=1), "sizes"),
        (conv(2, 2, spatial=1), conv(2, 2, spatial=2), "other dimensions"),
    ],
)
def test_branches_that_do_not_fit_are_refused(first: ConvMap, second: ConvMap, words: str) -> None:
    with pytest.raises(Inexact, match=words):
        plus(first, second)


# ---------------------------------------------------------------------- layers


@pytest.mark.parametrize(
    "one",
    [
        conv(3, 4, spatial=0),
        conv(3, 4, 3, spatial=1, stride=2, padding=1),
        conv(4, 4, 3, padding=2, dilation=2, groups=2),
        conv(2, 2, 2, spatial=3, bias=False),
        conv(3, 2, 3, padding=1, ones=True),
        line(4),
        line(4, spatial=0),
    ],
)
def test_the_layers_of_a_map_compute_it(one: ConvMap) -> None:
    x = torch.randn(2, one.channels_in, *SIZE[one.spatial], dtype=torch.float64)
    layers = torch.nn.Sequential(*one.layers(torch.empty(0, dtype=torch.float64)))
    torch.testing.assert_close(layers(x), run(one, x), rtol=1e-13, atol=1e-12)
