"""Ranks of feature maps that are known beforehand, and networks that have none."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import shoal
from shoal.errors import ConfigError


@pytest.mark.parametrize(
    ("shape", "rank"), [((2, 4, 6, 5), 1.0), ((2, 3, 4, 6, 5), 1.0), ((2, 7, 4), 1.0)]
)
def test_maps_of_one_row_have_rank_one(shape: tuple[int, ...], rank: float) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor) -> Tensor:
            return x + x * self.scale

    x = torch.rand(shape[:-2]).add(1.0)[..., None, None] * torch.ones(shape[-2:])
    network = shoal.capture(Block(), x)
    (name,) = (block.name for block in network.blocks)
    assert shoal.score(network, [x], "hrank?scope=global")[name] == rank
    assert shoal.score(network, [0 * x], "hrank?scope=global")[name] == 0.0


def test_blocks_of_vectors_have_no_maps() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.line = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return x + torch.relu(self.line(x))

    network = shoal.capture(nn.Sequential(Block(), Block(), nn.Linear(8, 3)), torch.randn(2, 8))
    with pytest.raises(ConfigError, match="block '0' has no feature maps") as error:
        shoal.score(network, [torch.randn(4, 8)], "hrank")
    assert "\n" not in str(error.value)
    assert set(shoal.score(network, [torch.randn(4, 8)], "cka")) == {"0", "1"}
