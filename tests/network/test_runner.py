"""Listening hears the values of any node and changes nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import shoal
from shoal.models import cifar_resnet20
from shoal.network import Network
from shoal.network.runner import Tap, listen


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    return shoal.capture(cifar_resnet20(width=4).eval(), torch.randn(2, 3, 12, 12))


def test_taps_hear_the_operands_and_the_sum(network: Network) -> None:
    blocks = network.blocks
    heard: list[tuple[Tensor, ...]] = []
    taps = [
        Tap(b.addition, (b.shortcut, b.output, b.addition), lambda *v: heard.append(v))
        for b in blocks
    ]
    x = torch.randn(3, 3, 12, 12)
    with torch.no_grad():
        before = network(x)
        handle = listen(network, taps)
        during = network(x)
        handle.remove()
        after = network(x)
    assert torch.equal(before, during)
    assert torch.equal(before, after)
    assert len(heard) == len(blocks)
    assert all(torch.equal(a + b, c) for a, b, c in heard)


def test_several_listen_and_leave_in_any_order(network: Network) -> None:
    block = network.blocks[0]
    counts = [0, 0]

    def hearer(index: int) -> Tap:
        def hear(value: Tensor) -> None:
            counts[index] += 1

        return Tap(block.addition, (block.addition,), hear)

    x = torch.randn(2, 3, 12, 12)
    first, second = listen(network, [hearer(0)]), listen(network, [hearer(1)])
    network(x)
    first.remove()
    network(x)
    second.remove()
    network(x)
    assert counts == [1, 2]
    assert network.code == network.copy().code
