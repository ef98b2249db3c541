"""Variants of a network give what the changed network gives, at less work."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import shoal
from captures import resnet20
from changed import changed
from shoal.importance.candidates import Variants, candidates
from shoal.network import Network
from shoal.surgery import drop_


@pytest.fixture(scope="module")
def network() -> Network:
    return resnet20()


def test_a_variant_is_the_network_with_another_value(network: Network) -> None:
    blocks = candidates(network, "block")
    features = network.node_of("linear").all_input_nodes[0]
    variants = Variants(network, blocks, watch=[features])
    head = network.get_submodule("linear")
    with torch.no_grad():
        for seed in range(2):
            x = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
            assert torch.equal(variants.run(x), network(x))
            for b in [*blocks, blocks[0]]:
                found = variants.run_with(b)
                assert torch.equal(found, changed(drop_, network.copy(), b.name)(x))
                assert torch.equal(head(variants.watched(features)), found)


def test_only_what_comes_later_runs_again(network: Network) -> None:
    blocks = candidates(network, "block")
    variants = Variants(network, blocks)
    calls: list[str] = []
    handles = [
        module.register_forward_hook(lambda m, x, y, name=name: calls.append(name))
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d)
    ]
    with torch.no_grad():
        variants.run(torch.randn(2, 3, 16, 16))
        assert len(calls) == 19
        last = blocks[-1]
        for b, wanted in ((last, 0), (blocks[0], 16), (blocks[-2], 2)):
            calls.clear()
            variants.run_with(b)
            assert len(calls) == wanted
    for handle in handles:
        handle.remove()


def test_memory_that_the_network_writes_into_is_made_anew() -> None:
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.one(x)
            table = torch.zeros_like(x)
            table[:, 1:3] = x[:, 1:3]
            x = x + self.two(x)
            return x * table

    torch.manual_seed(0)
    model = Writes().eval()
    x = torch.randn(3, 4)
    network = shoal.capture(model, x)
    blocks = candidates(network, "block")
    assert len(blocks) == 2
    variants = Variants(network, blocks)
    with torch.no_grad():
        variants.run(x)
        for b in (blocks[0], blocks[1], blocks[0]):
            found = variants.run_with(b)
            assert torch.equal(found, changed(drop_, network.copy(), b.name)(x))


def test_structured_inputs_and_outputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.line = nn.Linear(4, 4)

        def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
            return {"logits": x + self.line(x), "sum": x + y}

    model = Two().eval()
    x, y = torch.randn(2, 4), torch.randn(2, 4)
    network = shoal.capture(model, (x, y))
    (block,) = candidates(network, "block")
    variants = Variants(network, [block])
    with torch.no_grad():
        assert torch.equal(variants.run(x, y=y)["logits"], model(x, y)["logits"])
        found = variants.run_with(block)
    assert torch.equal(found["logits"], x)
    assert torch.equal(found["sum"], x + y)
