"""A network whose inputs are images and one number can be passed over like any other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import shoal


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, factor: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x) * factor))


@pytest.mark.parametrize("samples", [None, 8, 16])
def test_lines_are_fitted_with_a_tensor_without_dimensions(samples: int | None) -> None:
    net = shoal.capture(Scaled().eval(), (torch.randn(2, 4), torch.tensor(2.0)))
    x = torch.randn(16, 4)
    batches = [((part, torch.tensor(2.0)), torch.zeros(8).long()) for part in x.split(8)]
    name = net.sites[0].name
    line = shoal.fit_lines(net, batches, samples=samples)[name]
    z = (net.get_submodule("a")(x[:samples]) * 2).double()
    products = ((z - z.mean(0)) * (z.relu() - z.relu().mean(0))).mean(0)
    slope = products / z.var(0, correction=0)
    assert torch.allclose(line.slope, slope, atol=1e-5)


def test_sites_are_scored_with_a_tensor_without_dimensions() -> None:
    net = shoal.capture(Scaled().eval(), (torch.randn(2, 4), torch.tensor(2.0)))
    batches = [((torch.randn(8, 4), torch.tensor(2.0)), torch.arange(8) % 3) for _ in range(3)]
    for criterion in ("entropy", "line_loss"):
        assert len(shoal.score(net, batches, criterion)) == 1
