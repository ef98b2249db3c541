"""Gradient criteria by batch statistics, where a batch has one sample alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import shoal
from shoal.errors import TrainingError


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 8)
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.out(torch.relu(x + self.b(torch.relu(self.norm(x)))))


def network() -> shoal.Network:
    torch.manual_seed(0)
    return shoal.capture(Normed().eval(), torch.randn(2, 4))


def data(*sizes: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(n, 4, generator=generator), torch.arange(n) % 3) for n in sizes]


@pytest.mark.parametrize("criterion", ["snip", "taylor", "grasp"])
def test_a_last_batch_of_one_sample_is_left_out(criterion: str) -> None:
    whole = shoal.score(network(), data(8, 8, 1), criterion, statistics="batch")
    without = shoal.score(network(), data(8, 8), criterion, statistics="batch")
    assert dict(whole) == pytest.approx(dict(without), rel=1e-9)
    assert whole.samples == without.samples == 16
    assert shoal.score(network(), data(8, 8, 1), criterion).samples == 17


def test_batches_of_one_sample_alone_are_an_error() -> None:
    with pytest.raises(TrainingError, match="batch of size 1"):
        shoal.score(network(), data(1, 1), "snip", statistics="batch")
