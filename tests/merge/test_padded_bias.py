"""The bias of two padded convolutions that become one: each tap of the second adds one.

Of one channel with all weights 1, biases 0.5 and 0.25: 0.25 + 9 · 0.5 = 4.75. Summed over a patch
that is padded first, it would be 27 (giommariapilo/layerfold).
"""

from __future__ import annotations

import torch
from torch import nn

import shoal
from shoal.merge.merge import merge_
from shoal.merge.padding import move_paddings_
from shoal.network import Network

BIAS = 4.75


def folded() -> Network:
    """Two convolutions that pad, with the rectifier between them linearized."""
    layers = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.ReLU(), nn.Conv2d(1, 1, 3, padding=1))
    for layer, bias in ((layers[0], 0.5), (layers[2], 0.25)):
        nn.init.ones_(layer.weight)
        nn.init.constant_(layer.bias, bias)
    network = shoal.capture(layers.eval(), torch.randn(2, 1, 9, 9))
    shoal.linearize_(network, "1", how="identity")
    return network


def test_of_a_zero_image_the_inside_is_the_bias_and_borders_have_fewer_taps() -> None:
    with torch.no_grad():
        (out,) = folded()(torch.zeros(1, 1, 9, 9))[0]
    assert out[1:-1, 1:-1].eq(BIAS).all()
    assert out[0, 1:-1].eq(0.25 + 6 * 0.5).all()
    assert out[0, 0] == 0.25 + 4 * 0.5


def test_the_one_convolution_has_the_same_bias() -> None:
    network = move_paddings_(folded(), [("0", "2")])
    assert merge_(network, policy="always").depth_after == 1
    (layer,) = (module for module in network.modules() if isinstance(module, nn.Conv2d))
    assert layer.bias is not None
    assert layer.bias.tolist() == [BIAS]
    ones = torch.tensor([1.0, 2.0, 3.0, 2.0, 1.0])  # three taps of ones by three
    assert torch.equal(layer.weight[0, 0], torch.outer(ones, ones))
    assert layer.padding == (2, 2)
    with torch.no_grad():
        assert network(torch.zeros(1, 1, 9, 9)).eq(BIAS).all()
